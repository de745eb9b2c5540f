"""What goes wrong around processes that live on: the disk, its bits, the clock. Rows of the same table.

The coordinator's state lies on a file system of its own, 48 MiB in memory, in a private mount namespace, so that it can
be full or read-only; that takes the rights to mount.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults.fleet import DEVICES, Fleet, NotRecoveredError, wait_for
from benchmarks.faults.kills import AROUND, Account, job_of
from benchmarks.faults.networks import set_cable
from benchmarks.faults.trap import Step

HELD_S = 3.0
"""A disk stays full or read-only for so long."""

CUT_OFF_S = 8.0
"""Links are disturbed for so long: more than the three heartbeats after which a device counts as gone."""

_DISK_BYTES = 48 << 20
_DAY_S = 86_400.0
_CLONE_NEWNS = 0x00020000
_PAGE = 4096


def own_mounts() -> str:
    """Give this process, and those that it starts from now on, mounts of its own; says why not, if it cannot."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS) != 0:
        return f"no mount namespace: {os.strerror(ctypes.get_errno())}"
    done = subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True, text=True, check=False)
    return done.stderr.strip()


def run_links(
    root: Path, shards: dict[str, Path], undisturbed: list[str], times: int, say: Callable[[str], None]
) -> Account:
    """Do what happens to links to a fleet whose devices have networks of their own; see ``run_surroundings``."""
    fleet = Fleet(root / "links", job_of(AROUND), shards, has_networks=True)
    return _do_all(LINK_FAULTS, fleet, undisturbed, times, say)


def run_surroundings(
    root: Path,
    shards: dict[str, Path],
    undisturbed: list[str],
    times: int,
    say: Callable[[str], None],
) -> Account:
    """Do each fault so many times to one fleet, which recovers from each; gives what came of it.

    Args:
      root: the fleet's folder goes here.
      shards: the devices' data.
      undisturbed: the digests of the same job when nothing goes wrong.
      times: of each fault.
      say: told how far it is.
    """
    disk = root / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", disk], check=True)
    fleet = Fleet(root / "surroundings", job_of(AROUND), shards, state=disk / "coordinator")
    try:
        return _do_all(FAULTS, fleet, undisturbed, times, say)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def _do_all(
    faults: dict[str, Callable[[Fleet], float]],
    fleet: Fleet,
    undisturbed: list[str],
    times: int,
    say: Callable[[str], None],
) -> Account:
    account = Account()
    try:
        began = fleet.start()
        fleet.await_progress(0)
        say(f"{fleet.root.name}: the fleet works after {time.monotonic() - began:.0f} s")
        for row, fault in faults.items():
            for _ in range(times):
                done = fleet.progress()
                ended = fault(fleet)
                account.note(row, 1, fleet.await_progress(max(done, fleet.progress())) - ended)
            say(f"{fleet.root.name}: {row}, {times} times")
        wait_for("the job to end", lambda: fleet.job_state()[0] == "COMPLETED", limit_s=600)
        account.add_fleet(fleet, undisturbed)
        return account
    finally:
        fleet.stop()


def _fill_the_disk(fleet: Fleet) -> float:
    ballast = fleet.state.parent / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(_PAGE))
    time.sleep(HELD_S)
    ballast.unlink()
    return time.monotonic()


def _make_payloads_read_only(fleet: Fleet) -> float:
    blobs = fleet.state / "blobs"
    subprocess.run(["mount", "--bind", blobs, blobs], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", blobs], check=True)
        time.sleep(HELD_S)
    finally:
        subprocess.run(["umount", "--lazy", blobs], check=True)
    return time.monotonic()


def _set_clocks(shift_s: float) -> Callable[[Fleet], float]:
    def set_and_go_on(fleet: Fleet) -> float:
        fleet.clock.write_text(str(shift_s))
        done, began = fleet.progress(), time.monotonic()
        fleet.await_progress(done)
        fleet.clock.unlink()  # and back again, in the middle of things
        return began

    return set_and_go_on


def _damage_the_database(fleet: Fleet) -> float:
    """Damage a page; the coordinator must refuse it and say so. Then put back what was there."""
    fleet.coordinator.kill()
    path = fleet.state / "bitfleet.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # what is in the log too is read from there
    content = path.read_bytes()
    path.write_bytes(content[:_PAGE] + bytes([0xA5]) * _PAGE + content[2 * _PAGE :])
    written = fleet.coordinator.place.log.stat().st_size
    fleet.start_coordinator(is_awaited=False)
    code = fleet.coordinator.wait(60)
    said = fleet.coordinator.place.log.read_bytes()[written:].decode()
    if code != 3 or "is damaged" not in said or "bitfleet-server restore" not in said:
        raise NotRecoveredError(f"a damaged database was taken: {code}, {said}")
    path.write_bytes(content)
    ended = time.monotonic()
    fleet.start_coordinator()
    return ended


def _damage_the_model(change: Callable[[bytes], bytes]) -> Callable[[Fleet], float]:
    def damage(fleet: Fleet) -> float:
        fleet.coordinator.kill()
        ((digest,),) = fleet.query("SELECT payload_digest FROM model_versions ORDER BY version DESC LIMIT 1")
        _change(fleet.state / "blobs" / digest[:2] / digest, change)
        ended = time.monotonic()
        fleet.start_coordinator()
        return ended

    return damage


def _damage_a_pending_update(fleet: Fleet) -> float:
    name = DEVICES[0]
    fleet.devices[name].arm(Step.parse("after edge_client.state_dir:StateDir.keep_pending"))
    fleet.await_death(fleet.devices[name])
    _change(fleet.root / name / "pending" / "update.safetensors", _flip_a_bit)
    ended = time.monotonic()
    fleet.start_device(name)
    return ended


def _damage_cached_models(fleet: Fleet) -> float:
    name = DEVICES[1]
    fleet.devices[name].kill()
    for path in (fleet.root / name / "models").rglob("*.safetensors"):
        _change(path, _flip_a_bit)
    ended = time.monotonic()
    fleet.start_device(name)
    return ended


def _change(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def _flip_a_bit(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _cut_off(fleet: Fleet) -> float:
    for name in DEVICES[:2]:
        set_cable(fleet.cables[name], "down")
    time.sleep(CUT_OFF_S)
    for name in DEVICES[:2]:
        set_cable(fleet.cables[name], "up")
    return time.monotonic()


def _shake(fleet: Fleet) -> float:
    end = time.monotonic() + CUT_OFF_S
    while time.monotonic() < end:
        for state, seconds in (("down", 0.2), ("up", 0.3)):
            for port in fleet.cables.values():
                set_cable(port, state)
            time.sleep(seconds)
    return time.monotonic()


def _vanish(fleet: Fleet) -> float:
    """A device is gone without a word, and is back while the coordinator holds its old connection open."""
    name = DEVICES[2]
    set_cable(fleet.cables[name], "down")
    fleet.devices[name].kill()
    ended = time.monotonic()
    fleet.start_device(name)
    return ended


FAULTS: dict[str, Callable[[Fleet], float]] = {
    f"coordinator's disk full for {HELD_S:g} s": _fill_the_disk,
    f"payloads read-only for {HELD_S:g} s": _make_payloads_read_only,
    "all clocks set forward by a day, and back": _set_clocks(_DAY_S),
    "all clocks set back by a day, and forward": _set_clocks(-_DAY_S),
    "a page of the database damaged: refused at the start, then put back": _damage_the_database,
    "a bit of the newest model changed": _damage_the_model(_flip_a_bit),
    "the newest model cut": _damage_the_model(_cut),
    "a bit of a device's pending update changed": _damage_a_pending_update,
    "a bit of each model that a device keeps changed": _damage_cached_models,
}
"""By row. Each gives when the fleet could begin to recover."""

LINK_FAULTS: dict[str, Callable[[Fleet], float]] = {
    f"two of three devices cut off for {CUT_OFF_S:g} s, without a word": _cut_off,
    f"all links gone for 0.2 s of each 0.5 s, for {CUT_OFF_S:g} s": _shake,
    "a device gone without a word, and back beside its half-open connection": _vanish,
}
"""The same, of links."""

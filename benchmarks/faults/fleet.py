"""A real fleet that faults are done to: a coordinator over TLS, enrolled devices, and the account of what was lost."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

from benchmarks.faults.actors import Actor, Place, start_coordinator, start_device
from benchmarks.faults.networks import COORDINATOR_HOST, host_of, join
from benchmarks.faults.trap import Step
from edge_client.pss import process_tree

DEVICES = ("device-1", "device-2", "device-3")
LIMIT_S = 120.0
"""Longest wait for anything; a fleet that needs more has not recovered."""

_READY = re.compile(r"devices at (\S+), people at (https://\S+?)/\s")
_FINGERPRINT = re.compile(r"known by (\S+) ")
_COMMITTED = re.compile(r"event=round_committed job=\S+ round=(\d+) .*weights_digest=(\w+)")
_T = TypeVar("_T")


class NotRecoveredError(Exception):
    """The fleet did not go on."""


def wait_for(what: str, probe: Callable[[], _T | None], limit_s: float = LIMIT_S) -> _T:
    """Call ``probe`` until it gives something true.

    Raises:
      NotRecoveredError: it gave nothing in time.
    """
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if found := probe():
            return found
        time.sleep(0.02)
    raise NotRecoveredError(f"waited {limit_s:.0f} s for {what}")


@dataclass
class Losses:
    """What must be empty: each entry says what was lost or doubled, and where."""

    rounds: list[str] = field(default_factory=list)
    """That the coordinator had called committed."""
    updates: list[str] = field(default_factory=list)
    """That a device was told are on the coordinator's disk, and are not."""
    doubled: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    """Of rounds that ended in other bits than undisturbed ones of the same devices."""

    @property
    def count(self) -> int:
        return len(self.rounds) + len(self.updates) + len(self.doubled) + len(self.digests)

    def __iadd__(self, other: Losses) -> Losses:
        for name, entries in vars(other).items():
            getattr(self, name).extend(entries)
        return self


class Fleet:
    """A coordinator and three devices over one folder, for one job.

    Args:
      root: the folder, made here.
      job: as in a job file.
      shards: the devices' data by name.
      state: the coordinator's state folder; in ``root``, when it is not given.
      has_networks: each device is in a network of its own, and this process in one with a bridge (``networks.py``).
    """

    def __init__(
        self,
        root: Path,
        job: dict[str, Any],
        shards: dict[str, Path],
        *,
        state: Path | None = None,
        has_networks: bool = False,
    ) -> None:
        root.mkdir(parents=True)
        self.root = root
        self.state = state or root / "coordinator"
        self.devices: dict[str, Actor] = {}
        self.coordinator: Actor
        self.clock = root / "clock"
        """Seconds by which all processes' clocks are wrong, when it is there."""
        self._shards = shards
        self.cables: dict[str, str] = {}
        """Of devices in networks of their own."""
        self._has_networks = has_networks
        self._grpc = self._http = f"{COORDINATOR_HOST if has_networks else '127.0.0.1'}:0"
        (root / "job.json").write_text(json.dumps(job))

    # Life

    def start(self, step: Step | None = None) -> float:
        """Start everything; gives when the coordinator began, or died where it is to die at a step of its start."""
        began = time.monotonic()
        place = self._place("coordinator")
        if step is not None:
            place.trap.write_text(str(step))
        self.start_coordinator(is_awaited=step is None)
        if step is not None:
            self.await_death(self.coordinator)
            began = time.monotonic()
            self.start_coordinator()
        self._enrol()
        for name in DEVICES:
            self.start_device(name)
        return began

    def start_coordinator(self, *, is_awaited: bool = True) -> None:
        """Start it; again at the same addresses, over the same state."""
        place = self._place("coordinator")
        written = place.log.stat().st_size if place.log.exists() else 0
        self.coordinator = start_coordinator(
            [
                *("serve", "--grpc", self._grpc, "--http", self._http, "--state", str(self.state)),
                *("--job", str(self.root / "job.json"), "--heartbeat-interval", "2", "--settle", "0.1"),
                *("--max-chunk-bytes", "1024", "--max-update-bytes", "1048576", "--min-free-bytes", "0"),
            ],
            place,
        )
        if is_awaited:
            self.await_coordinator(written)

    def await_coordinator(self, written: int = 0) -> None:
        """Wait until it serves: until its log says so, after so many bytes."""

        def ready() -> re.Match[str] | None:
            log = self.coordinator.place.log
            if self.coordinator.exit_code is not None:
                raise NotRecoveredError(f"the coordinator ended: {log.read_text()[-2000:]}")
            return _READY.search(log.read_bytes()[written:].decode()) if log.exists() else None

        addresses = wait_for("the coordinator to be ready", ready)
        self._grpc, self._http = addresses[1], addresses[2].removeprefix("https://")

    def start_device(self, name: str) -> None:
        """Start a device's agent."""
        run = ["run", "--server", self._grpc, "--data", str(self._shards[name]), "--state", str(self.root / name)]
        self.devices[name] = self._start_in_its_network(name, run)

    def stop(self) -> None:
        """End what runs."""
        for actor in [*self.devices.values(), self.coordinator]:
            if actor.exit_code is None:
                actor.end()

    def _enrol(self) -> None:
        identity = self.state / "identity"
        headers = {"Authorization": f"Bearer {(identity / 'admin.key').read_text().strip()}"}
        context = ssl.create_default_context(cadata=(identity / "ca.pem").read_text())
        url, wanted = f"https://{self._http}", {"uses": len(DEVICES)}
        answer = httpx.post(f"{url}/api/v1/tokens", json=wanted, headers=headers, verify=context, trust_env=False)
        (self.root / "token").write_text(answer.raise_for_status().json()["token"])
        fingerprint = _FINGERPRINT.findall(self.coordinator.log)[-1]
        known = ["--server", url, "--ca-fingerprint", fingerprint, "--token-file", str(self.root / "token")]
        enrolments = [
            self._start_in_its_network(name, ["enroll", *known, "--device-id", name, "--state", str(self.root / name)])
            for name in DEVICES
        ]
        for enrolment in enrolments:
            if enrolment.wait(LIMIT_S) != 0:
                raise NotRecoveredError(f"a device could not enrol: {enrolment.log[-2000:]}")

    def _start_in_its_network(self, name: str, arguments: list[str]) -> Actor:
        actor = start_device(arguments, self._place(name))
        if self._has_networks:
            self.cables[name] = join(actor.pid)
        return actor

    def _place(self, name: str) -> Place:
        host = host_of(DEVICES.index(name)) if self._has_networks and name in DEVICES else ""
        log, trap, acks = (self.root / f"{name}.{kind}" for kind in ("log", "trap", "acks"))
        return Place(log, trap, acks, self.clock, host)

    # Looking

    def query(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Ask the coordinator's database; it is opened for reading alone."""
        with contextlib.closing(sqlite3.connect(f"file:{self.state / 'bitfleet.db'}?mode=ro", uri=True)) as connection:
            return connection.execute(statement, values).fetchall()

    def progress(self) -> int:
        """Count the committed rounds, and one for the job's end."""
        rounds = self.query("SELECT COUNT(*) FROM rounds WHERE state = 'COMMITTED'")
        ended = self.query("SELECT COUNT(*) FROM jobs WHERE state NOT IN ('PENDING', 'RUNNING')")
        return int(rounds[0][0]) + int(ended[0][0])

    def job_state(self) -> tuple[str, str]:
        """The job's state, and why."""
        ((state, reason),) = self.query("SELECT state, reason FROM jobs")
        return state, reason

    def digests(self) -> list[str]:
        """Of the committed rounds, by number."""
        rows = self.query("SELECT weights_digest FROM rounds WHERE state = 'COMMITTED' ORDER BY round_number")
        return [digest for (digest,) in rows]

    def await_progress(self, beyond: int) -> float:
        """Wait until more is done than that; gives when."""

        def has_gone_on() -> bool:
            for actor in (self.coordinator, *self.devices.values()):
                if actor.exit_code is not None:
                    raise NotRecoveredError(f"a process ended by itself: {actor.log[-2000:]}")
            return self.progress() > beyond

        wait_for("the next round to be committed", has_gone_on)
        return time.monotonic()

    def trainer(self, name: str) -> int | None:
        """PID of a device's trainer, while there is one."""
        children = process_tree(self.devices[name].pid)[1:]
        return children[-1] if children else None

    @staticmethod
    def await_death(actor: Actor) -> None:
        """Wait until an armed process has killed itself."""
        code = actor.wait(LIMIT_S)
        if code != -9:
            step = actor.disarm()
            raise NotRecoveredError(f"{step!r} was not reached, exit code {code}: {actor.log[-2000:]}")

    # The account

    def losses(self, undisturbed: list[str]) -> Losses:
        """Hold the database against what the coordinator said it had committed, and devices were told it had."""
        found = Losses()
        digests = dict(self.query("SELECT round_number, weights_digest FROM rounds WHERE state = 'COMMITTED'"))
        for number, digest in _COMMITTED.findall(self._place("coordinator").log.read_text()):
            if digests.get(int(number)) != digest:
                found.rounds.append(f"{self.root.name}: round {number}, {digest[:12]}")
        for number, digest in sorted(digests.items()):
            if digest != undisturbed[number - 1]:
                found.digests.append(f"{self.root.name}: round {number}, {digest[:12]}")
        rows = self.query("SELECT round_number, device_id, update_digest FROM updates WHERE status = 'ACCEPTED'")
        folded = {(number, device): digest for number, device, digest in rows}
        told: dict[tuple[int, str], set[str]] = {}
        for name in DEVICES:
            acks = self._place(name).acks
            for line in acks.read_text().splitlines() if acks.exists() else ():
                entry = json.loads(line)
                if entry["status"] in ("ACCEPTED", "DUPLICATE"):
                    told.setdefault((entry["round"], name), set()).add(entry["digest"])
        for (number, name), of_round in sorted(told.items()):
            if folded.get((number, name)) not in of_round:
                found.updates.append(f"{self.root.name}: {name} in round {number}")
            if len(of_round) > 1:
                found.doubled.append(f"{self.root.name}: {name} in round {number}")
        for number in digests:
            if any((number, name) not in folded for name in DEVICES):
                found.updates.append(f"{self.root.name}: round {number} lacks a device")
        return found

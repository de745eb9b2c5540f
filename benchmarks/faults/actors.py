"""The processes that are killed: the coordinator's and the devices' own programs, with traps in them.

Each is forked from a process that has imported everything (``multiprocessing``'s fork server), which spares a restart
its imports. What a device is told about its updates is also written down here, flushed to the disk before the device
itself learns of it: the account that the coordinator's is held against in the end.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import edge_client.agent
import edge_client.cli
import edge_client.renewal
import server.cli
from benchmarks.faults.networks import enter_network
from benchmarks.faults.steps import COORDINATOR, DEVICE, FIRST_START, LAST_COMMIT, RECOVERY
from benchmarks.faults.trap import Step, install
from bitfleet.v1 import fleet_pb2 as wire
from edge_client.courier import status_name
from edge_client.transport import Transport

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["benchmarks.faults.actors", "server.app.serve"])

END_S = 30.0
"""Longest wait for a process that was told to end."""


@dataclass(frozen=True)
class Place:
    """Files by which a process is known from outside."""

    log: Path
    trap: Path
    """Appears to arm the process; see ``trap.py``."""
    acks: Path
    """Of a device: what it was told about its updates."""
    clock: Path
    """Seconds by which its clock is wrong, when it is there."""
    host: str = ""
    """Its address in a network of its own; empty: it has none."""


class Actor:
    """One process."""

    def __init__(self, run: Callable[[Sequence[str], Place], None], arguments: Sequence[str], place: Place) -> None:
        self.place = place
        self._process: ForkServerProcess = _context.Process(target=run, args=(list(arguments), place), daemon=False)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Minus the signal's number where one ended it; None while it runs."""
        return self._process.exitcode

    @property
    def log(self) -> str:
        return self.place.log.read_text()

    def arm(self, step: Step) -> None:
        """Have the process killed at a step."""
        written = self.place.trap.with_suffix(".new")
        written.write_text(str(step))
        written.replace(self.place.trap)

    def disarm(self) -> str:
        """Have it live on; gives the step that it was to be killed at."""
        step = self.place.trap.read_text() if self.place.trap.exists() else ""
        self.place.trap.unlink(missing_ok=True)
        return step

    def wait(self, timeout_s: float) -> int | None:
        """Wait for the end; gives the exit code, None when it still runs."""
        self._process.join(timeout_s)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def end(self) -> None:
        """Tell it to end, and see that it does."""
        self._process.terminate()
        if self.wait(END_S) is None:
            self.kill()


def start_coordinator(arguments: Sequence[str], place: Place) -> Actor:
    """Start ``bitfleet-server`` with these arguments."""
    return Actor(_coordinator, arguments, place)


def start_device(arguments: Sequence[str], place: Place) -> Actor:
    """Start ``bitfleet-client`` with these arguments."""
    return Actor(_device, arguments, place)


def _coordinator(arguments: Sequence[str], place: Place) -> None:
    _write_to(place.log)
    _shift_clock(place.clock)
    install([*FIRST_START, *COORDINATOR, *RECOVERY, *LAST_COMMIT], place.trap)
    sys.exit(server.cli.main(list(arguments)))


def _device(arguments: Sequence[str], place: Place) -> None:
    _write_to(place.log)
    if place.host:
        enter_network(place.host)
    _shift_clock(place.clock)
    # A link that was short keeps the next wait from being short, lest two agents of one name fight for the stream, and
    # one that fails again has a child look at the certificate. Here links are short because of coordinators that are
    # killed every few seconds, and certificates are good.
    edge_client.agent.SETTLED_S = 0.0
    edge_client.renewal._FIRST_LOOK = 1 << 20
    _keep_account(place.acks)
    install(DEVICE, place.trap)
    sys.exit(edge_client.cli.main(list(arguments)))


def _write_to(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def _shift_clock(shift: Path) -> None:
    """Have bitfleet's own code see a clock that was set; gRPC's would not agree with that of its native part then."""
    right = time.time

    def wrong() -> float:
        caller = sys._getframe(1).f_globals["__name__"].partition(".")[0]
        try:
            return right() + (float(shift.read_text()) if caller in ("server", "edge_client", "bnncore") else 0.0)
        except (FileNotFoundError, ValueError):
            return right()

    time.time = wrong


def _keep_account(acks: Path) -> None:
    submit = Transport.submit

    async def told(
        self: Transport, header: wire.UpdateHeader, path: Path, chunk_bytes: int
    ) -> wire.SubmitUpdateResponse:
        answer = await submit(self, header, path, chunk_bytes)
        line = {
            "job": header.job_id,
            "round": header.round_number,
            "device": header.device_id,
            "digest": header.update_digest,
            "status": status_name(answer),
        }
        with acks.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fdatasync(file.fileno())
        return answer

    Transport.submit = told  # type: ignore[method-assign]

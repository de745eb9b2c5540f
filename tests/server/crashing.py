"""A process that runs coordinators and lets them be killed, as by ``kill -9``, around a given call to the disk.

It forks one child for each line on standard input: ``{"state": DIR, "port": N, "point": "before:commit_round:2",
"kind": "secure"}``. The child runs the job in the state folder to its end, printing its port, and is killed at the
point. The parent prints how the child ended. Forking spares every restart the imports.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from server.coordinator import Coordinator
from server.limits import Limits
from server.rpc import FleetService, create_server
from server.storage.blobs import LocalBlobs
from server.storage.sql import open_storage
from tests.server.conftest import make_job

ROUNDS = 2
DEVICES = {"plain": ("a", "b"), "secure": ("a", "b", "c")}
JOBS: dict[str, dict[str, Any]] = {
    "plain": {"strategy": "fedyogi"},
    "secure": {"recipe": "onebit", "statistics_batches": 2, "secure_aggregation": {}},
}


class Trap:
    """Kills the process with SIGKILL at the nth call of one method; one that takes several things counts as so many."""

    def __init__(self, point: str | None) -> None:
        self._when, self._method, count = (point or "never:none:0").split(":")
        self._left = int(count)

    def wrap(self, target: Any) -> Any:
        return _Trapped(target, self)

    def reached(self, when: str, method: str, count: int) -> None:
        if (when, method) == (self._when, self._method):
            self._left -= count
            if self._left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)


class _Trapped:
    """Passes every call on, through the trap."""

    def __init__(self, target: Any, trap: Trap) -> None:
        self._target, self._trap = target, trap

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not callable(value):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            count = len(args[0]) if args and isinstance(args[0], list | tuple) else 1
            self._trap.reached("before", name, count)
            result = value(*args, **kwargs)
            self._trap.reached("after", name, count)
            return result

        return call


async def run(state: Path, port: int, point: str | None, kind: str) -> None:
    trap = Trap(point)
    coordinator = Coordinator(
        trap.wrap(open_storage(f"sqlite:///{state / 'bitfleet.db'}")),
        trap.wrap(LocalBlobs(state / "blobs")),
        limits=Limits(settle_s=0.05),
    )
    server = create_server(FleetService(coordinator, version="0.1.0"), max_chunk_bytes=256 * 1024)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await coordinator.jobs.ensure(make_job(rounds=ROUNDS, min_devices=len(DEVICES[kind]), **JOBS[kind]))
    await coordinator.lead()
    print(json.dumps({"port": port}), flush=True)
    await coordinator.jobs.wait_until_idle()
    coordinator.dismiss_devices()
    await server.stop(1)
    await coordinator.stop()


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            asyncio.run(run(Path(order["state"]), order["port"], order["point"], order["kind"]))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"ended": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()

"""A process that is one replica, and is killed, as by ``kill -9``, around its adding up of an accepted update.

``python -m tests.server.replicas.crashing NAME DATABASE_URL BLOBS before|after`` prints its port for devices; the first
update that it folds is its end.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server.coordinator import Coordinator
from server.replicas.names import application_name
from server.replicas.partials import Partial
from server.replicas.replica import Replica
from server.rpc import FleetService, create_server
from server.storage.blobs import LocalBlobs
from server.storage.sql import open_storage


def dying(fold: Callable[..., None], when: str) -> Callable[..., None]:
    """Kill the process before or after the call."""

    def fold_and_die(*args: Any) -> None:
        if when == "after":
            fold(*args)
        os.kill(os.getpid(), signal.SIGKILL)

    return fold_and_die


async def run(name: str, url: str, blobs: Path, when: str) -> None:
    Partial.fold = dying(Partial.fold, when)  # type: ignore[method-assign]
    storage = open_storage(url, application_name(name))
    coordinator = Coordinator(storage, LocalBlobs(blobs))
    server = create_server(FleetService(coordinator, version="0.1.0"), max_chunk_bytes=1024)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with Replica(coordinator, storage, name, url, store="shared", version="0.1.0"):
        print(port, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4]))

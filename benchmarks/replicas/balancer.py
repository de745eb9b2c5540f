"""An ordinary TCP load balancer in front of the replicas: HAProxy where it is installed, else a small one of our own.

    python -m benchmarks.replicas.balancer '{"devices": {"listen": 7070, "to": [7071, 7072]}}'

Both take turns, know nothing of sessions and leave TLS to the replicas. HAProxy asks each replica's ``/readyz``; the
other one only notices that nobody takes a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_HAPROXY = """
global
    maxconn 4000
defaults
    mode tcp
    balance roundrobin
    option redispatch
    retries 3
    timeout connect 2s
    timeout client 10m
    timeout server 10m
    option httpchk GET /readyz
    default-server inter 500ms fall 2 rise 1
"""


@dataclass(frozen=True)
class Front:
    """A port in front of others.

    Attributes:
      port: where to connect.
      behind: the replicas' ports, in their order.
    """

    port: int
    behind: Sequence[int]


class Balancer:
    """A running balancer for devices' and people's ports; leaving the block ends it."""

    def __init__(self, folder: Path, devices: Front, people: Front) -> None:
        haproxy = shutil.which("haproxy")
        if haproxy is not None:
            path = folder / "haproxy.cfg"
            path.write_text(_haproxy_config(devices, people))
            self._command = [haproxy, "-db", "-f", str(path)]
        else:
            fronts = {front.port: list(front.behind) for front in (devices, people)}
            self._command = [sys.executable, "-m", "benchmarks.replicas.balancer", json.dumps(fronts)]
        self.name = "HAProxy" if haproxy is not None else "a small one of the benchmark's"
        self._log = folder / "balancer.log"

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *error: object) -> None:
        self._kill()

    def restart(self) -> None:
        """Kill it and start it again: everybody connects anew, to all replicas alike."""
        self._kill()
        self._start()

    def _start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """See that it still runs.

        Raises:
          RuntimeError: it has ended.
        """
        if self._process.poll() is not None:
            raise RuntimeError(f"the balancer ended by itself: {self._log.read_text()[-2000:]}")


def _haproxy_config(devices: Front, people: Front) -> str:
    """Ask each replica once, for both ports."""
    lines = [_HAPROXY]
    for name, front, looks in (
        ("people", people, "check check-ssl verify none"),
        ("devices", devices, "track people/replica-{}"),
    ):
        lines += [f"listen {name}", f"    bind 127.0.0.1:{front.port}"]
        lines += [f"    server replica-{i} 127.0.0.1:{port} {looks.format(i)}" for i, port in enumerate(front.behind)]
    return "\n".join(lines) + "\n"


async def _serve(fronts: dict[int, list[int]]) -> None:
    for port, behind in fronts.items():
        await asyncio.start_server(_Turns(behind).hand_on, "127.0.0.1", port)
    await asyncio.Event().wait()


class _Turns:
    """Hands connections on to whoever's turn it is and who takes them."""

    def __init__(self, ports: list[int]) -> None:
        self._ports = itertools.cycle(ports)
        self._count = len(ports)

    async def hand_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            for _ in range(self._count):
                try:
                    onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", next(self._ports))
                except OSError:
                    continue
                with contextlib.closing(onward_writer):
                    pipes = [
                        asyncio.ensure_future(_pipe(reader, onward_writer)),
                        asyncio.ensure_future(_pipe(onward_reader, writer)),
                    ]
                    await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
                    for pipe in pipes:
                        pipe.cancel()
                    await asyncio.gather(*pipes, return_exceptions=True)
                return


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()


if __name__ == "__main__":
    asyncio.run(_serve({int(port): behind for port, behind in json.loads(sys.argv[1]).items()}))

"""The devices' process, as its parent sees it."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Self

from benchmarks.faults.fleet import NotRecoveredError
from benchmarks.replicas.devices import Plan
from benchmarks.replicas.site import HEARTBEAT_S, LIMIT_S, Site
from benchmarks.replicas.versions import Version


class Devices:
    """A process of ``devices``; leaving the block kills it.

    Args:
      site: where they belong.
      count: how many.
      say: is told of their problems.
      first: number of the first.
      version: of bitfleet; that of this checkout, when it is not given.
      changes: of ``Plan``.

    Attributes:
      problems: what they met that no device should meet.
      ledger: of what they were told.
    """

    def __init__(
        self,
        site: Site,
        count: int,
        say: Callable[[str], None],
        *,
        first: int = 0,
        version: Version | None = None,
        **changes: Any,
    ) -> None:
        self.problems: list[str] = []
        self.ledger = site.root / f"ledger-{first}.jsonl"
        plan = Plan(
            grpc=site.grpc,
            url=site.url,
            ca_pem=site.ca_pem.decode(),
            token=site.make_token(2 * count),  # an answer that is lost has used it, too
            first=first,
            count=count,
            ledger=str(self.ledger),
            heartbeat_s=HEARTBEAT_S,
            **changes,
        )
        self.plan = plan
        self._path = plan.write(site.root / f"plan-{first}.json")
        self._say = say
        self._version = version or Version.of_this_checkout()
        self._events: SimpleQueue[dict[str, Any]] = SimpleQueue()

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._version.command("benchmarks.replicas.devices", str(self._path)),
            cwd=self._version.tree, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, word: object = "") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()

    def hear(self, name: str, limit_s: float = LIMIT_S) -> dict[str, Any]:
        """Wait for an event.

        Raises:
          NotRecoveredError: it does not come, or the process has ended.
        """
        while True:
            try:
                event = self._events.get(timeout=limit_s)
            except Empty:
                raise NotRecoveredError(f"waited {limit_s:.0f} s for the devices to say {name!r}") from None
            if "ended_by_itself" in event:
                raise NotRecoveredError("the devices' process ended; its complaint stands above")
            if name in event:
                return event

    def finish(self) -> dict[str, int]:
        """Have them end; gives the calls that ended with a status, by that."""
        self.tell(0)
        errors: dict[str, int] = self.hear("errors")["errors"]
        return errors

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            if problem := event.get("problem"):
                self.problems.append(problem)
                self._say(problem)
            elif note := event.get("note"):
                self._say(note)
            else:
                self._events.put(event)
        self._events.put({"ended_by_itself": True})


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """What devices were told, in the order that they wrote it down."""
    return [json.loads(line) for line in path.read_text().splitlines()]

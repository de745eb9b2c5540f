"""Ends a process by ``SIGKILL`` at a named step, such as ``after server.storage.sql:SqlStorage.commit_round``.

``install`` wraps the functions that a list of steps names, inside the process that is to be killed. Nothing happens
until a file appears that says which step is meant; the process removes the file and is gone. So one process can run
undisturbed for as long as wanted and be killed at one exact place then, without being started anew for it.

A step is written ``WHEN MODULE:NAME [COUNT] [inside MODULE:NAME]``. WHEN is ``before`` or ``after`` a call, or ``mid``:
with half of the bytes written, or after a generator's item. COUNT, 1 when left out, is the call that is meant, of those
made after the file appeared, and only while a call of the function after ``inside`` goes on, where one is named.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import os
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WHENS = ("before", "mid", "after")


@dataclass(frozen=True)
class Step:
    """A place in the code."""

    when: str
    function: str
    count: int = 1
    inside: str = ""

    @classmethod
    def parse(cls, text: str) -> Step:
        """Read a step; see the module's docstring."""
        place, _, inside = text.partition(" inside ")
        when, function, *count = place.split()
        if when not in _WHENS:
            raise ValueError(f"a step begins with one of {', '.join(_WHENS)}, got {text!r}")
        return cls(when, function, int(count[0]) if count else 1, inside)

    def __str__(self) -> str:
        count = f" {self.count}" if self.count > 1 else ""
        return f"{self.when} {self.function}{count}" + (f" inside {self.inside}" if self.inside else "")


class Trap:
    """The file that arms a process, seen from inside it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._seen: Counter[str] = Counter()
        self._running: Counter[str] = Counter()
        self._armed = ""

    @contextlib.contextmanager
    def around(self, function: str) -> Iterator[None]:
        """Watch a call, which is the block."""
        self.reached("before", function)
        with self._lock:
            self._running[function] += 1
        try:
            yield
        finally:
            with self._lock:
                self._running[function] -= 1
        self.reached("after", function)

    def means(self, when: str, function: str) -> bool:
        """Say whether this is the step that is meant, which counts it."""
        with self._lock:
            try:
                text = self._file.read_text()
            except FileNotFoundError:
                return False
            if text != self._armed:
                self._armed = text
                self._seen.clear()
            step = Step.parse(text)
            if (when, function) != (step.when, step.function) or (step.inside and not self._running[step.inside]):
                return False
            self._seen[text] += 1
            return self._seen[text] == step.count

    def reached(self, when: str, function: str) -> None:
        """Be killed, if this is the step that is meant."""
        if self.means(when, function):
            self.spring()

    def spring(self) -> None:
        """Be killed."""
        os.remove(self._file)
        os.kill(os.getpid(), signal.SIGKILL)


def install(steps: Iterable[Step], file: Path) -> None:
    """Wrap what the steps name in this process.

    Args:
      steps: all that may be asked for.
      file: asks for one.
    """
    trap = Trap(file)
    for name in sorted({name for step in steps for name in (step.function, step.inside) if name}):
        owner, attribute = _find(name)
        setattr(owner, attribute, _wrapped(getattr(owner, attribute), name, trap))


def _find(name: str) -> tuple[Any, str]:
    module, _, path = name.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, attribute = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    return owner, attribute


def _wrapped(function: Callable[..., Any], name: str, trap: Trap) -> Callable[..., Any]:
    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def generate(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            with trap.around(name):
                async with contextlib.aclosing(function(*args, **kwargs)) as items:
                    async for item in items:
                        trap.reached("mid", name)
                        yield item

        return generate

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def wait(*args: Any, **kwargs: Any) -> Any:
            with trap.around(name):
                return await function(*args, **kwargs)

        return wait

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with trap.around(name):
            if trap.means("mid", name):
                *head, data = args
                function(*head, data[: len(data) // 2])
                trap.spring()
            return function(*args, **kwargs)

    return call

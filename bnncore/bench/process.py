"""The parent's end of a worker (``bnncore.bench.worker``)."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from types import TracebackType
from typing import Any, Self

from bnncore.errors import BitfleetError, ConfigurationError

__all__ = ["Worker", "WorkerFailed"]

_LEAVE_S = 2.0
"""Seconds that a worker is given to end by itself."""


class WorkerFailed(BitfleetError):
    """A worker ended, or did not answer in time; the message says which and what it last said."""


class Worker:
    """A process that trains one side. Use it in a ``with`` block, which ends it.

    Args:
      name: what messages call it.
      description: of the side.
      timeout_s: longest wait for an answer.
      command: the program; for tests.

    Raises:
      ConfigurationError: the worker was asked for something that cannot be, e.g. a library that is not installed.
      WorkerFailed: it ended early or took too long.
    """

    def __init__(
        self,
        name: str,
        description: dict[str, Any],
        *,
        timeout_s: float = 600.0,
        command: tuple[str, ...] = (sys.executable, "-P", "-m", "bnncore.bench.worker"),
    ) -> None:
        self.name = name
        self._timeout_s = timeout_s
        self._pending = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the worker)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, bufsize=0
        )
        try:
            self.about = self._exchange(description)
        except BaseException:
            self.close()
            raise

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Raises:
          ConfigurationError, WorkerFailed: see the class.
        """
        return self._exchange({"do": do, **arguments})

    def close(self) -> None:
        """End the process: kindly, then not."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LEAVE_S)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError:
            raise self._failed() from None
        answer: dict[str, Any] = json.loads(self._read_line())
        if "error" in answer:
            raise ConfigurationError(answer["error"])
        return answer

    def _read_line(self) -> bytes:
        assert self._process.stdout is not None
        deadline = time.monotonic() + self._timeout_s
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise WorkerFailed(f"the process that runs {self.name} gave no answer within {self._timeout_s:.0f} s")
            part = os.read(self._process.stdout.fileno(), 1 << 16)
            if not part:
                raise self._failed()
            self._pending += part
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _failed(self) -> WorkerFailed:
        try:
            code = self._process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            code = 0
        how = f"exit code {code}"
        if code < 0:
            how = f"signal {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                how += ", which the system sends when memory runs out"
        return WorkerFailed(f"the process that runs {self.name} ended early ({how}){self._last_words()}")

    def _last_words(self) -> str:
        """Its last line on standard error: where Python says what went wrong."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1].strip()}" if lines else ""

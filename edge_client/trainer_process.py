"""Children of the agent: started for one piece of work, observed through their events, ended by their PID.

A child prints one JSON object a line (``child.EventWriter``). It never outlives the agent: it binds itself to it
(``child.bind_to_parent``), and here whatever ends the waiting also ends the child.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from edge_client.errors import ModelMissingError, TaskDeclinedError, TaskError, TaskFailedError
from edge_client.pss import pss_bytes, tree_pss_bytes

__all__ = ["KilledBySignalError", "TrainingResult", "ask_child", "run_child", "run_trainer"]

logger = logging.getLogger(__name__)

SAMPLE_INTERVAL_S = 1.0
"""Between two measurements of the device's memory while a trainer runs."""

_MAX_LINE_BYTES = 1 << 20

# One BLAS thread: NumPy's BLAS reserves buffers for every thread it could start, and the engine has its own threads.
_CHILD_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

_ERRORS_BY_OUTCOME: dict[str, type[TaskError]] = {
    "declined": TaskDeclinedError,
    "failed": TaskFailedError,
    "model_missing": ModelMissingError,
}

Event = dict[str, Any]
TrainingResult = dict[str, Any]


class KilledBySignalError(TaskFailedError):
    """The trainer was killed: by the out-of-memory killer, or by somebody."""


@contextlib.asynccontextmanager
async def run_child(module: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a module of this package as a child and hold it.

    When the block ends, however it ends, the child has ended and is reaped.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", module, "--parent", str(os.getpid()), *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **_CHILD_ENVIRONMENT},
        limit=_MAX_LINE_BYTES,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await asyncio.shield(process.wait())


async def ask_child(module: str, *arguments: str) -> Event | None:
    """Run a child to its end and give its last event; None when it printed none."""
    last: Event | None = None
    async with run_child(module, *arguments) as process:
        async for event in _events(process):
            last = event
    return last


async def run_trainer(task_dir: Path, *, on_step: Callable[[int, int], None]) -> TrainingResult:
    """Have one task trained.

    Args:
      task_dir: folder with the task's ``task.json``; the update's payload is there afterwards.
      on_step: called with (steps done, steps to do) as the trainer reports them.

    Returns:
      The trainer's last event, with ``seconds`` (start-up included) and ``peak_pss_bytes`` of the whole device added.

    Raises:
      TaskDeclinedError, ModelMissingError, TaskFailedError: as the trainer said, or it ended without a word.
      KilledBySignalError: it was killed.
    """
    started = time.monotonic()
    peak = _PeakMemory()
    async with run_child("edge_client.trainer", str(task_dir)) as process:
        logger.info("trainer started pid=%d", process.pid)
        sampler = asyncio.create_task(peak.sample())
        last: Event = {}
        try:
            async for event in _events(process):
                if "step" in event:
                    on_step(int(event["step"]), int(event["total_steps"]))
                else:
                    last = event
            returncode = await process.wait()
        finally:
            sampler.cancel()
    if returncode < 0:
        raise KilledBySignalError(f"the trainer was killed by {_signal_name(-returncode)}; is memory short?")
    if last.get("outcome") in _ERRORS_BY_OUTCOME:
        raise _ERRORS_BY_OUTCOME[last["outcome"]](str(last.get("reason", "")))
    if returncode != 0 or last.get("outcome") != "done":
        raise TaskFailedError(f"the trainer ended with exit code {returncode} and no result")
    peak.include(int(last.get("peak_pss_bytes", 0)))
    return {**last, "seconds": time.monotonic() - started, "peak_pss_bytes": peak.bytes}


async def _events(process: asyncio.subprocess.Process) -> AsyncIterator[Event]:
    assert process.stdout is not None  # asked for in run_child
    while True:
        try:
            line = await process.stdout.readline()
        except ValueError:
            raise TaskFailedError(f"the trainer wrote a line of more than {_MAX_LINE_BYTES} bytes") from None
        if not line:
            return
        try:
            event = json.loads(line)
        except ValueError:
            continue  # cut by the trainer's end
        if isinstance(event, dict):
            yield event


class _PeakMemory:
    """Highest sum of the device's processes: sampled, and completed by what the trainer knows of its own peak."""

    def __init__(self) -> None:
        self.bytes = 0

    async def sample(self) -> None:
        while True:
            self.bytes = max(self.bytes, tree_pss_bytes(os.getpid()))
            await asyncio.sleep(SAMPLE_INTERVAL_S)

    def include(self, trainer_peak_bytes: int) -> None:
        self.bytes = max(self.bytes, pss_bytes(os.getpid()) + trainer_peak_bytes)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

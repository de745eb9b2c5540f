"""Children of the agent: started when there is work, observed through their events, ended by their PID.

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
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

from bnncore.energy import open_meter
from edge_client.cost import Cost
from edge_client.errors import ModelMissingError, TaskDeclinedError, TaskError, TaskFailedError
from edge_client.pacing import Pace, Pacer

__all__ = ["KilledBySignalError", "Trainer", "TrainingResult", "ask_child"]

logger = logging.getLogger(__name__)

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


async def _start(module: str, *arguments: str, stdin: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", module, "--parent", str(os.getpid()), *arguments),
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **_CHILD_ENVIRONMENT},
        limit=_MAX_LINE_BYTES,
    )


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a child, if it has not ended by itself, and reap it."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    await asyncio.shield(process.wait())


async def ask_child(module: str, *arguments: str) -> Event | None:
    """Run a module of this package as a child to its end and give its last event; None when it printed none.

    However the waiting ends, the child has ended and is reaped then.
    """
    last: Event | None = None
    process = await _start(module, *arguments, stdin=asyncio.subprocess.DEVNULL)
    try:
        async for event in _events(process):
            last = event
    finally:
        await _end(process)
    return last


class Trainer:
    """The child that trains: started for a task, then kept for a while, since starting it costs more than a short task.

    It is kept only after a task that went well; whatever else happened to it ends with it. Kept, it holds an engine
    laid out for the last task, and it is the first that the system takes when memory is short: that is found out at
    the next task, which then has a trainer of its own.

    Args:
      keep_s: seconds that it is kept between two tasks; 0: not at all.
      threads: of a training step.
    """

    def __init__(self, *, keep_s: float, threads: int) -> None:
        self._keep_s = keep_s
        self._threads = threads
        self._meter = open_meter()
        self._idle: asyncio.subprocess.Process | None = None
        self._farewell: asyncio.Task[None] | None = None

    async def train(
        self, task_dir: Path, *, on_step: Callable[[int, int], None], pacer: Pacer | None = None
    ) -> TrainingResult:
        """Have one task trained; one at a time.

        Args:
          task_dir: folder with the task's ``task.json``; the update's payload is there afterwards.
          on_step: called with (steps done, steps to do) as the trainer reports them.
          pacer: holds the trainer by the owner's rules; None: nothing does.

        Returns:
          The trainer's last event, with ``seconds`` (a start and pauses included), the whole device's
          ``peak_pss_bytes``, and ``joules`` with their ``joules_source``; pauses are taken out of ``training_seconds``.

        Raises:
          TaskDeclinedError, ModelMissingError, TaskFailedError: as the trainer said, or it ended without a word.
          KilledBySignalError: it was killed.
        """
        started = time.monotonic()
        process = await self._take()
        pace = Pace()
        cost = Cost(self._meter, pace)
        sampler = asyncio.create_task(cost.sample())
        is_kept = False
        try:
            if pacer is None:
                result = await _train(process, task_dir, on_step)
            else:
                result = await _ahead_of(pacer.hold(process, pace), _train(process, task_dir, on_step))
            await cost.end(result)
            is_kept = self._keep_s > 0
        finally:
            sampler.cancel()
            if is_kept:
                self._idle = process
                self._farewell = asyncio.create_task(self._end_later(process))
            else:
                await _end(process)
        if (began := result.pop("training_began", None)) is not None:
            result["training_seconds"] -= pace.seconds(began, began + result["training_seconds"])
        return {**result, "seconds": time.monotonic() - started}

    async def close(self) -> None:
        """End the trainer that is kept, if there is one."""
        process = self._take_idle()
        if process is not None:
            await _end(process)

    async def _take(self) -> asyncio.subprocess.Process:
        process = self._take_idle()
        if process is not None:
            if process.returncode is None:
                return process
            logger.info("the trainer has ended while it was kept pid=%d", process.pid)
        process = await _start(*("edge_client.trainer", "--threads", str(self._threads)), stdin=asyncio.subprocess.PIPE)
        logger.info("trainer started pid=%d", process.pid)
        try:
            # Until it is bound to this process it must not be stopped: it would stand for ever if this one was killed.
            await anext(_events(process), None)
        except BaseException:
            await _end(process)
            raise
        return process

    def _take_idle(self) -> asyncio.subprocess.Process | None:
        if self._farewell is not None:
            self._farewell.cancel()
        process, self._idle = self._idle, None
        return process

    async def _end_later(self, process: asyncio.subprocess.Process) -> None:
        await asyncio.sleep(self._keep_s)
        self._idle = None
        logger.info("trainer ended pid=%d: no task for %g s", process.pid, self._keep_s)
        await _end(process)


async def _train(
    process: asyncio.subprocess.Process, task_dir: Path, on_step: Callable[[int, int], None]
) -> TrainingResult:
    """Name a task to a trainer and hear it out; returns its last event."""
    assert process.stdin is not None  # asked for when it was started
    with contextlib.suppress(ConnectionError):  # it has ended: what is heard of it says how
        process.stdin.write(f"{json.dumps(str(task_dir))}\n".encode())
        await process.stdin.drain()
    async for event in _events(process):
        if "step" in event:
            on_step(int(event["step"]), int(event["total_steps"]))
            continue
        if event.get("outcome") == "done":
            return event
        error = _ERRORS_BY_OUTCOME.get(event.get("outcome", ""), TaskFailedError)
        raise error(str(event.get("reason", "")))
    returncode = await process.wait()
    if returncode < 0:
        raise KilledBySignalError(f"the trainer was killed by {_signal_name(-returncode)}; is memory short?")
    raise TaskFailedError(f"the trainer ended with exit code {returncode} and no result")


async def _events(process: asyncio.subprocess.Process) -> AsyncIterator[Event]:
    assert process.stdout is not None  # asked for when it was started
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


async def _ahead_of(guard: Coroutine[Any, Any, None], work: Coroutine[Any, Any, TrainingResult]) -> TrainingResult:
    """Do the work, with the guard beside it, which ends with it or ends it by an error."""
    both = guarding, working = asyncio.create_task(guard), asyncio.create_task(work)
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            guarding.result()
        return await working
    finally:
        for task in both:
            task.cancel()
        await asyncio.wait(both)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

"""Where a task's model comes from: the cache, the job's seed, steps from an older model, or a download of it all.

Whatever costs no bytes comes first, then steps from the newest cached model that lies on the way, then the model
itself. Steps are applied by the trainer, which has the arithmetic; the digest that the task names judges the outcome.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bitfleet.v1 import fleet_pb2 as wire
from bnncore.way import way_to_model
from edge_client.courier import Courier
from edge_client.state_dir import StateDir

__all__ = ["ModelSource", "Permit", "download_model", "find_model"]

Permit = Callable[[int], Awaitable[None]]
"""Awaited with the bytes that are about to be downloaded; raises TaskDeclinedError where the owner forbids it."""


@dataclass(frozen=True)
class ModelSource:
    """What a trainer starts from.

    Attributes:
      base: a cached model; None: the one that the job's seed makes.
      steps: steps from it to the task's model, in order; empty when it is the task's model.
      downloaded_bytes: bytes of payload that were downloaded for it.
    """

    base: Path | None
    steps: tuple[Path, ...] = ()
    downloaded_bytes: int = 0


async def find_model(task: wire.Task, state: StateDir, courier: Courier, permit: Permit) -> ModelSource:
    """Get what a task's model can be made from, with as few bytes as possible.

    Raises:
      TaskDeclinedError: the device's owner does not let it be downloaded.
      TaskFailedError: a download cannot be had, or the task names payloads by what is no digest.
      OSError: the disk refused.
    """
    bases = [step.base_digest.hex() for step in task.steps]
    way = way_to_model(task.model_digest, bases, state.models.find, from_seed=task.HasField("initial_seed"))
    if way is None:
        return await download_model(task, state, courier, permit)
    base = None if way.base is None else state.models.find(way.base)
    return await _download_steps(base, task.steps[way.first_step :], state, courier, permit)


async def download_model(task: wire.Task, state: StateDir, courier: Courier, permit: Permit) -> ModelSource:
    """Download a task's model, whatever is cached; what is in the cache under its digest is dropped.

    Raises:
      TaskDeclinedError: the device's owner does not let it be downloaded.
      TaskFailedError: it cannot be had.
      OSError: the disk refused.
    """
    await permit(task.model_bytes)
    state.models.discard(task.model_digest)
    path, received = await courier.fetch(
        state.models.of(task.job_id), task.model_digest, task.model_bytes, task.download_url
    )
    return ModelSource(path, downloaded_bytes=received)


async def _download_steps(
    base: Path | None, steps: Sequence[wire.ModelStep], state: StateDir, courier: Courier, permit: Permit
) -> ModelSource:
    missing = sum(step.num_bytes for step in steps if state.steps.find(step.digest.hex()) is None)
    if missing:
        await permit(missing)
    paths: list[Path] = []
    downloaded = 0
    for step in steps:
        path = state.steps.find(step.digest.hex())
        if path is None:
            path, received = await courier.fetch(state.steps, step.digest.hex(), step.num_bytes, step.download_url)
            downloaded += received
        paths.append(path)
    return ModelSource(base, tuple(paths), downloaded)

"""What a trainer is told of its task: ``task.json``."""

from __future__ import annotations

from typing import Any

from bitfleet.v1 import fleet_pb2 as wire
from edge_client.model_source import ModelSource
from edge_client.settings import ClientSettings
from edge_client.state_dir import StateDir

__all__ = ["task_file", "told_range", "told_sum"]


def task_file(
    settings: ClientSettings,
    state: StateDir,
    device_id: str,
    max_memory: int,
    task: wire.Task,
    source: ModelSource,
    *,
    plan_only: bool,
) -> dict[str, Any]:
    """Give the content of ``task.json``, which ``trainer`` reads.

    Args:
      settings: the agent's.
      state: the state folder.
      device_id: the device's lasting name.
      max_memory: bytes that the trainer may take.
      task: what is to be trained.
      source: what its model is made from.
      plan_only: whether only its memory is to be planned.
    """
    training = task.training
    local_state = state.local_states.find(task.job_id)
    best = state.best_models.find(task.job_id)
    return {
        "job_id": task.job_id,
        "device_id": device_id,
        "plan_only": plan_only,
        "max_memory": max_memory,
        "round_number": task.round_number,
        "model_digest": task.model_digest,
        "model_path": None if source.base is None else str(source.base),
        "step_paths": [str(path) for path in source.steps],
        "local_state_path": None if local_state is None else str(local_state),
        "best_path": None if best is None else str(best),
        "initial_seed": task.initial_seed,
        "spec_json": task.spec_json,
        "down_codec": task.down_codec,
        "up_codec": task.up_codec,
        "classes": list(task.classes),
        "local_tensors": list(task.local_tensors),
        "input_range": told_range(task),
        "summed": told_sum(task),
        "training": {
            "preset": training.preset,
            "optimizer": training.optimizer,
            "batch_size": training.batch_size,
            "local_steps": training.local_steps,
            "step_scale": training.step_scale,
            "seed": training.seed,
            "proximal_mu": training.proximal_mu,
            "statistics_batches": training.statistics_batches,
            "local_validation": training.local_validation,
        },
        "data": {"name": settings.dataset, "root": None if settings.data is None else str(settings.data)},
    }


def told_range(task: wire.Task) -> dict[str, list[float]] | None:
    """Say by which range real numbers become a task's input; None: it names none."""
    if not task.HasField("input_range"):
        return None
    return {"low": list(task.input_range.low), "high": list(task.input_range.high)}


def told_sum(task: wire.Task) -> dict[str, Any] | None:
    """Say how a task's update is told as whole numbers, for ``summed``; None: it is told as ever.

    The fewest members whose sum is ever seen share the noise out; more of them add more of it.
    """
    if not task.HasField("secure"):
        return None
    secure = task.secure
    privacy = None
    if secure.HasField("privacy"):
        privacy = {
            "mechanism": secure.privacy.mechanism,
            "noise_multiplier": secure.privacy.noise_multiplier,
            "noisy_members": secure.min_members,
            "clip": secure.privacy.clip,
        }
    return {"weights": secure.weights, "clip": secure.clip, "scales": secure.scales.hex(), "privacy": privacy}

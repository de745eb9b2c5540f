"""Where a job's model starts when not from its seed: a version of another job's model, or a checkpoint."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from bnncore.checkpoint import load_checkpoint
from bnncore.errors import BitfleetError
from bnncore.spec import ModelSpec
from bnncore.state import State
from server.coordinator.disk import Disk
from server.coordinator.versions import initial_state, read_exported_state
from server.errors import InvalidJobError
from server.job_parts import StartChoice
from server.jobs import JobConfig


async def load_start(disk: Disk, config: JobConfig, start: StartChoice) -> State:
    """Read the state that a job starts from.

    Raises:
      InvalidJobError: it is not there, not readable, or of another network than the job's.
    """
    try:
        if start.checkpoint is not None:
            checkpoint = await asyncio.to_thread(load_checkpoint, Path(start.checkpoint))
            name, spec, state = start.checkpoint, checkpoint.spec, checkpoint.state
        else:
            name, spec, state = await _read_version(disk, str(start.model), start.version or 0)
    except InvalidJobError:
        raise
    except BitfleetError as error:
        raise InvalidJobError(f"start cannot be read: {error}") from error
    if spec != config.spec:
        raise InvalidJobError(
            f"start {name!r} is of network {spec.name!r} ({spec.digest[:12]}), the job's is "
            f"{config.spec.name!r} ({config.spec.digest[:12]}); both must be the same"
        )
    if all(tensor.name in state for tensor in spec.tensors):
        return state
    fresh = await asyncio.to_thread(initial_state, config)  # a checkpoint may come without statistics
    return {tensor.name: state.get(tensor.name, fresh[tensor.name]) for tensor in spec.tensors}


async def _read_version(disk: Disk, job_id: str, version: int) -> tuple[str, ModelSpec, State]:
    job = await disk.run(disk.storage.get_job, job_id)
    if job is None:
        raise InvalidJobError(f"start: there is no model {job_id!r}; list them with: bitfleet-server models list")
    record = await disk.run(disk.storage.get_version, job_id, version)
    if record is None:
        raise InvalidJobError(f"start: model {job_id!r} has no version {version}")
    spec = ModelSpec.from_json(job.spec_json)
    down_codec = str(json.loads(job.config_json)["down_codec"])
    state = await asyncio.to_thread(read_exported_state, disk.blobs, spec, record, down_codec)
    return f"{job_id} version {version}", spec, state

"""How much memory a job's training takes on a device, compared with what its owner grants."""

from __future__ import annotations

from bnncore.errors import BitfleetError
from bnncore.federated.memory import task_memory
from server.jobs import JobConfig


def training_memory(config: JobConfig, *, num_examples: int, threads: int) -> dict[str, int]:
    """Estimate the memory of a job's trainer on a device; see ``bnncore.federated.memory.task_memory``."""
    return task_memory(
        config.spec,
        preset=config.preset,
        optimizer=config.optimizer,
        batch_size=min(config.batch_size, num_examples),
        threads=threads,
        up_codec=config.up_codec,
        down_codec=config.down_codec,
        form=None if config.secure_aggregation is None else config.value_form(1),
    )


def why_too_large(config: JobConfig, memory_bytes: int, num_examples: int, threads: int) -> str | None:
    """Say why a job does not fit into the memory that a device's owner grants, or None when it does.

    Args:
      config: the job.
      memory_bytes: granted; 0 = without limit.
      num_examples: on the device, at least 1.
      threads: of the trainer.
    """
    if memory_bytes == 0:
        return None
    try:
        parts = training_memory(config, num_examples=num_examples, threads=threads)
    except BitfleetError as error:
        return f"its memory cannot be planned: {error}"
    needed = sum(parts.values())
    if needed <= memory_bytes:
        return None
    listed = ", ".join(f"{name} {num_bytes / 2**20:.1f}" for name, num_bytes in parts.items())
    return f"training takes {needed / 2**20:.1f} MiB ({listed}), its memory budget is {memory_bytes / 2**20:.1f} MiB"

"""How much memory a job's training takes on a device, compared with what its owner grants."""

from __future__ import annotations

from bnncore.codec import get_codec
from bnncore.errors import BitfleetError
from bnncore.optimizer import resolve_preset
from bnncore.plan import plan_memory
from server.jobs import JobConfig

TRAINER_BYTES = 26 << 20
"""A trainer without its engine and its payloads: interpreter, NumPy, buffers.

Measured as peak PSS less the plan, of ``python -m edge_client.trainer`` with a network of 1,200 weights and digits, on
x86_64 with CPython 3.11: 24.9 MiB with int8 both ways, 25.9 MiB with flips."""

_UP_BYTES_A_WEIGHT = {"int8": 2.1, "sign": 2.4, "flips": 2.4, "float16": 6.5, "float32": 9.1}
_DOWN_BYTES_A_WEIGHT = {"float16": 2.5, "float32": 3.0}
_DIFFERENCE_TO_FLOATS = 9.5
"""Payloads, states and differences while a model is read or an update written.

Measured in the same way with BinaryNet (14,022,016 weights) and CIFAR-10, less the plan and 26 MiB: up/down int8 2.0,
sign/sign 2.3, flips/sign 2.3, float16/int8 6.4, float32/int8 9.0; int8/float16 4.5, int8/float32 5.0, float16/float16
7.4, float32/float16 10.0, float32/float32 12.0; sign/float32 9.4."""

_MAX_THREADS = 256


def training_bytes(config: JobConfig, *, num_examples: int, threads: int) -> int:
    """Estimate the memory of a job's trainer on a device, in bytes: the engine's plan, payloads, and the rest.

    Args:
      config: the job.
      num_examples: on the device, at least 1; a batch is never larger.
      threads: of the trainer.

    Raises:
      BitfleetError: the engine cannot train such batches at all.
    """
    plan = plan_memory(
        config.spec,
        batch_size=min(config.batch_size, num_examples),
        preset=resolve_preset(config.preset, config.optimizer),
        threads=min(max(threads, 1), _MAX_THREADS),
    )
    if get_codec(config.up_codec).is_difference and config.down_codec in _DOWN_BYTES_A_WEIGHT:
        a_weight = _DIFFERENCE_TO_FLOATS
    else:
        a_weight = _UP_BYTES_A_WEIGHT[config.up_codec] + _DOWN_BYTES_A_WEIGHT.get(config.down_codec, 0.0)
    return plan.peak_bytes + TRAINER_BYTES + round(a_weight * config.spec.num_binary_weights)


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
        needed = training_bytes(config, num_examples=num_examples, threads=threads)
    except BitfleetError as error:
        return f"its memory cannot be planned: {error}"
    if needed <= memory_bytes:
        return None
    return f"training takes {needed / 2**20:.1f} MiB, its memory budget is {memory_bytes / 2**20:.1f} MiB"

"""How much memory a task's training takes on a device.

The coordinator asks before it gives a task, and the device again before it does anything for one.
"""

from __future__ import annotations

from bnncore.codec import get_codec
from bnncore.optimizer import resolve_preset
from bnncore.plan import plan_memory
from bnncore.secure.noise import table_bytes
from bnncore.secure.values import ValueForm
from bnncore.spec import ModelSpec

__all__ = ["TRAINER_BYTES", "task_memory"]

TRAINER_BYTES = 26 << 20
"""A trainer without its engine and its payloads: interpreter, NumPy, buffers.

Measured as peak PSS less the plan, of ``python -m edge_client.trainer`` with a network of 1,200 weights and digits, on
x86_64 with CPython 3.11: 24.9 MiB with int8 both ways, 25.9 MiB with flips."""

_REPLICA, _FEEDBACK, _SIGNS = 1.0, 2.0, 0.4
"""Bytes a weight where ``up_codec`` writes differences to an int8 model: that model's payload, which is held until the
update is made; the feedback of the last update and of this one; the differences and their payload."""

_UP_BYTES_A_WEIGHT = {"int8": 2.1, "float16": 6.5, "float32": 9.1}
_DOWN_BYTES_A_WEIGHT = {"float16": 2.5, "float32": 3.0}
_DIFFERENCE_TO_FLOATS = {"float16": 11.4, "float32": 8.4}
"""Payloads and states while a model is read or an update written, by ``down_codec``, feedback aside.

Measured in the same way with BinaryNet (14,022,016 weights) and CIFAR-10, less the plan and 26 MiB: up/down int8 2.0,
float16/int8 6.4, float32/int8 9.0; int8/float16 4.5, int8/float32 5.0, float16/float16 7.4, float32/float16 10.0,
float32/float32 12.0. With the feedback of a last update, which takes 1.0: sign/sign and flips/sign 3.2, sign/float32
10.3, flips/float16 13.3."""

_SUMMED = 7.5
"""Bytes a weight where weights are told as whole numbers under masks: the model and int16 differences, feedback, and
the vector with its bytes.

Measured in the same way, differences of int8 models: "fixed" 6.4, with the feedback of a last update 7.4; under
distributed privacy "fixed" 6.9, "signs" 5.2. Bare signs are an update by ``sign``: 3.1."""

_MASKER_BYTES = 48 << 20
"""The process that masks, without its vectors: interpreter, NumPy, cryptography, buffers.

Measured of ``python -m edge_client.exchange_child``, on x86_64 with CPython 3.11: 31 MiB of its own, and 30 MiB of
files that it maps, of which about half counts where the agent and a trainer map the same: a PSS of 36 MiB among many
such processes, of 47 beside one."""

_MASKED_MEMBERS = 1000
"""Of the cohort that the masked vector's width is estimated for; ten times as many take up to a byte a weight more."""

_MAX_THREADS = 256


def task_memory(
    spec: ModelSpec,
    *,
    preset: str,
    optimizer: str | None,
    batch_size: int,
    threads: int,
    up_codec: str,
    down_codec: str,
    form: ValueForm | None = None,
) -> dict[str, int]:
    """Estimate the memory of a trainer, in bytes by what it is for. Nothing of it is allocated.

    Args:
      spec: the network.
      preset: a named set of numeric choices.
      optimizer: None: the preset's own.
      batch_size: samples a step, not more than the device has.
      threads: of the trainer.
      up_codec: of updates.
      down_codec: of models, or of the steps to them.
      form: how updates are told that are added up under masks; None: they are not.

    Returns:
      ``engine`` (its plan), ``trainer`` (without that and the rest), and what is held of models and updates:
      ``replica``, ``feedback`` and ``update`` where updates are differences to an int8 model, else ``payloads``. And
      ``masks``, where the process that masks, when the training is over, takes more than all that: by how much.

    Raises:
      BitfleetError: the engine cannot train such batches at all, or there is no such preset or codec.
    """
    plan = plan_memory(
        spec,
        batch_size=batch_size,
        preset=resolve_preset(preset, optimizer),
        threads=min(max(threads, 1), _MAX_THREADS),
    )
    if form is not None and form.kind == "update" and (form.privacy is not None or form.weights == "fixed"):
        a_weight = {"payloads": _SUMMED + _DIFFERENCE_TO_FLOATS.get(down_codec, 0.0)}
    elif not get_codec(up_codec).is_difference:
        a_weight = {"payloads": _UP_BYTES_A_WEIGHT[up_codec] + _DOWN_BYTES_A_WEIGHT.get(down_codec, 0.0)}
    elif down_codec in _DIFFERENCE_TO_FLOATS:
        a_weight = {"payloads": _DIFFERENCE_TO_FLOATS[down_codec], "feedback": _FEEDBACK}
    else:
        a_weight = {"replica": _REPLICA, "feedback": _FEEDBACK, "update": _SIGNS}
    held = {name: round(num_bytes * spec.num_binary_weights) for name, num_bytes in a_weight.items()}
    parts = {"engine": plan.peak_bytes, "trainer": TRAINER_BYTES, **held}
    if form is not None and (more := _masker_bytes(form) - sum(parts.values())) > 0:
        parts["masks"] = more
    return parts


def _masker_bytes(form: ValueForm) -> int:
    """Estimate the memory of the process that masks a vector of this form: as told, in the ring, and as it is sent."""
    told = sum(part.dtype.itemsize * part.size // (8 if part.is_bits else 1) for part in form.parts)
    ring = form.layout(_MASKED_MEMBERS).num_bytes
    tables = 0
    if form.privacy is not None and form.privacy.devices_add:
        tables = sum(table_bytes(form.privacy.device_sigma(part)) for part in form.parts)
    return _MASKER_BYTES + told + 2 * ring + tables

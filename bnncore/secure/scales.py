"""Scales that a cohort agrees on: how far a sign moves the weights of a row, as they travel in a task.

``uint16`` (little-endian) in fine units for each row of each shared weight tensor, in the spec's order.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

import numpy as np
from numpy.typing import NDArray

from bnncore.codec import NONE_LOCAL
from bnncore.codec.base import tensors_of_kind
from bnncore.codec.signs import FINE_UNITS
from bnncore.errors import PayloadError
from bnncore.spec import ModelSpec, TensorSpec

__all__ = ["Scales", "public_scales", "scales_from_bytes", "scales_to_bytes"]

_SIGN_STEPS = 4
"""Steps of 1/127 that a sign under privacy stands for in the first round: about what two local steps move a weight."""

Scales = Mapping[str, NDArray[np.uint16]]
"""uint16 [rows] by weight tensor; empty while none were agreed."""


def scales_to_bytes(spec: ModelSpec, scales: Scales, local: AbstractSet[str] = NONE_LOCAL) -> bytes:
    """Write agreed scales; none give no bytes."""
    if not scales:
        return b""
    return b"".join(scales[tensor.name].astype("<u2").tobytes() for tensor in _weights(spec, local))


def scales_from_bytes(spec: ModelSpec, data: bytes, local: AbstractSet[str] = NONE_LOCAL) -> Scales:
    """Read agreed scales; no bytes are none.

    Raises:
      PayloadError: there are more or fewer than the network has rows.
    """
    if not data:
        return {}
    tensors = _weights(spec, local)
    wanted = 2 * sum(tensor.shape[0] for tensor in tensors)
    if len(data) != wanted:
        raise PayloadError(
            f"scales of model {spec.name!r} take {wanted} bytes, two for each row of its weights, got {len(data)}"
        )
    found, start = {}, 0
    for tensor in tensors:
        found[tensor.name] = np.frombuffer(data, "<u2", tensor.shape[0], start).astype(np.uint16)
        start += 2 * tensor.shape[0]
    return found


def public_scales(spec: ModelSpec, step_scale: float, local: AbstractSet[str] = NONE_LOCAL) -> Scales:
    """Give the magnitude of signs under privacy: no device has told one, so it follows from the round alone.

    Args:
      spec: the network.
      step_scale: factor on the size of steps in a round.
      local: names of the tensors that stay on devices.
    """
    fine = max(1, round(_SIGN_STEPS * FINE_UNITS * step_scale))
    return {tensor.name: np.full(tensor.shape[0], fine, np.uint16) for tensor in _weights(spec, local)}


def _weights(spec: ModelSpec, local: AbstractSet[str]) -> list[TensorSpec]:
    return [tensor for tensor in tensors_of_kind(spec, "step", local) if tensor.role == "weight"]

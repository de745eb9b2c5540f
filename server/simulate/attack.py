"""Poison: what a hostile device sends in place of what it learnt.

With the model b that it was given and what it learnt, l, it sends ``b - k (l - b)``, clipped to the range of latent
weights: ``negate`` has k = 1 and takes back what another device learnt, ``scale`` has k = 10 and takes back ten
devices' work. Statistics are sent as they are: they have to be plausible to be taken.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.codec import get_codec
from bnncore.spec import ModelSpec
from bnncore.state import State

ATTACKS = {"negate": 1.0, "scale": 10.0}
"""k by name."""


def poison(attack: str, spec: ModelSpec, base: State, payload: bytes, codec: str) -> bytes:
    """Turn an honest update into a hostile one.

    Args:
      attack: a key of ``ATTACKS``.
      spec: the network.
      base: the model that training started from.
      payload: the honest update.
      codec: of the update.
    """
    learnt = get_codec(codec).decode(spec, payload, kind="update")
    roles = {tensor.name: tensor for tensor in spec.tensors}
    hostile = {
        name: tensor if roles[name].is_statistic else _against(base[name], tensor, ATTACKS[attack])
        for name, tensor in learnt.items()
    }
    return get_codec(codec).encode(spec, hostile, kind="update")


def _against(base: NDArray[Any], learnt: NDArray[Any], factor: float) -> NDArray[Any]:
    """Go from ``base`` the other way, ``factor`` times as far; both are int8 steps or both float32."""
    hostile: NDArray[np.float64] = base - factor * (learnt.astype(np.float64) - base)
    if learnt.dtype == np.int8:
        return np.clip(np.rint(hostile), -127, 127).astype(np.int8)
    return hostile.astype(np.float32)

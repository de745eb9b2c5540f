"""Poison: what a hostile device sends in place of what it learnt.

With the model b that it was given and what it learnt, l, it sends ``b - k (l - b)``, clipped to the range of latent
weights: ``negate`` has k = 1 and takes back what another device learnt, ``scale`` has k = 10 and takes back ten
devices' work. A codec of differences is sent ``-k`` times the difference, its scales capped. Statistics are sent as
they are: they have to be plausible to be taken.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.codec import NONE_LOCAL, DifferenceCodec, SignTensor, get_codec
from bnncore.spec import ModelSpec
from bnncore.state import State, to_float32, to_int8

ATTACKS = {"negate": 1, "scale": 10}
"""k by name."""

_MAX_SCALE = np.iinfo(np.uint16).max


def poison(
    attack: str,
    spec: ModelSpec,
    base: State,
    payload: bytes,
    codec_name: str,
    local: AbstractSet[str] = NONE_LOCAL,
) -> bytes:
    """Turn an honest update into a hostile one.

    Args:
      attack: a key of ``ATTACKS``.
      spec: the network.
      base: the model that training started from; of no use to a codec of differences.
      payload: the honest update.
      codec_name: its codec.
      local: names of the tensors that it leaves out.
    """
    factor = ATTACKS[attack]
    roles = {tensor.name: tensor for tensor in spec.tensors}
    codec = get_codec(codec_name)
    if isinstance(codec, DifferenceCodec):
        differences = codec.decode(spec, payload, kind="update", local=local)
        for name, difference in differences.items():
            if not roles[name].is_statistic:
                differences[name] = _against_sign(difference, factor)
        return codec.encode(spec, differences, kind="update", local=local)
    state = dict(codec.decode(spec, payload, kind="update", local=local))
    for name, learnt in state.items():
        if not roles[name].is_statistic:
            state[name] = _against(base[name], learnt, factor, is_weight=roles[name].role == "weight")
    return codec.encode(spec, state, kind="update", local=local)


def _against(base: NDArray[Any], learnt: NDArray[Any], factor: int, *, is_weight: bool) -> NDArray[Any]:
    """Go from ``base`` the other way, ``factor`` times as far; what comes is of the dtype of ``learnt``."""
    if learnt.dtype == np.int8:
        steps = to_int8(base).astype(np.int32)
        far: NDArray[np.int32] = steps - factor * (learnt - steps)
        return np.clip(far, -127, 127).astype(np.int8)
    real = to_float32(base)
    hostile: NDArray[np.float32] = real - np.float32(factor) * (learnt.astype(np.float32) - real)
    if is_weight:
        np.clip(hostile, -1, 1, out=hostile)
    return hostile.astype(learnt.dtype)


def _against_sign(difference: NDArray[np.float32] | SignTensor, factor: int) -> NDArray[np.float32] | SignTensor:
    """Give ``-factor`` times a difference."""
    if not isinstance(difference, SignTensor):
        return -factor * difference
    present = difference.mask
    if present is None:
        present = np.packbits(np.ones(difference.row_size, np.uint8), bitorder="little")
    scales = np.minimum(difference.scales.astype(np.uint32) * factor, _MAX_SCALE).astype(np.uint16)
    return replace(difference, scales=scales, bits=difference.bits ^ present)

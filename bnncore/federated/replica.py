"""Steps between models that both ends hold: how the coordinator makes one, how every holder of the model applies it.

Where a job's ``down_codec`` writes differences, the coordinator keeps two models. The *master* is the float32 state
that aggregation moves. The *replica* is what devices hold: int8 latent weights and float32 beta. A step tells in a bit
a weight where the master lies as seen from the replica; the coordinator applies it to its own replica as each device
does, so what a step could not say is still in the next one: error feedback at the sender (Karimireddy et al., 2019,
arXiv 1901.09847, Algorithm 2) without a tensor of its own.

A replica is held as the payload of codec ``int8`` and kind ``model``, so its digest says whether two ends agree.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.codec import (
    NONE_LOCAL,
    Difference,
    DifferenceCodec,
    SignTensor,
    StateCodec,
    encode_steps,
    get_codec,
    get_difference_codec,
    get_state_codec,
    round_difference,
)
from bnncore.spec import ModelSpec
from bnncore.state import State

__all__ = ["apply_step", "follow_steps", "make_step", "model_codec"]

REPLICA_CODEC = "int8"


def model_codec(down_codec: str) -> StateCodec:
    """Give the codec of whole models in a job: its ``down_codec``, or the replica's where that writes differences."""
    codec = get_codec(down_codec)
    return codec if isinstance(codec, StateCodec) else get_state_codec(REPLICA_CODEC)


def make_step(
    spec: ModelSpec, master: State, replica: State, codec: DifferenceCodec, local: AbstractSet[str] = NONE_LOCAL
) -> Difference:
    """Say where the master lies, seen from the replica.

    Args:
      spec: the network.
      master: float32 weights and beta; statistics are not looked at.
      replica: int8 weights and float32 beta.
      codec: what will write the step.
      local: names of the tensors that stay on devices; a step leaves them as they are.

    Returns:
      The step as it decodes at the other end, so the sender may apply it as it is.
    """
    step: Difference = {}
    for tensor in spec.tensors:
        name = tensor.name
        if tensor.is_statistic or name in local:
            continue
        if tensor.role == "weight":
            step[name] = encode_steps(master[name], replica[name], density=codec.density)
        else:
            step[name] = (master[name] - replica[name]).astype(np.float32)
    return round_difference(spec, step)


def apply_step(replica: State, step: Difference) -> State:
    """Give the replica that a step leads to; the old one is not changed.

    Weights move by their row's scale in whole units of 1/127 and stay within +-127; all else is added in float32. What
    the step does not tell of stays as it is.
    """
    return {**replica, **{name: _moved(replica[name], difference) for name, difference in step.items()}}


def _moved(array: NDArray[Any], difference: NDArray[np.float32] | SignTensor) -> NDArray[Any]:
    if isinstance(difference, SignTensor):
        moved = array.copy()
        difference.apply_to(moved)
        return moved
    return array + difference


def follow_steps(
    spec: ModelSpec,
    model: bytes | memoryview,
    steps: Iterable[bytes | memoryview],
    down_codec: str,
    local: AbstractSet[str] = NONE_LOCAL,
) -> bytes | memoryview:
    """Take a model's payload along payloads of steps.

    Returns:
      The payload of the model that the last one leads to; the same bytes as the coordinator's own. ``model`` itself
      when there are no steps.

    Raises:
      ConfigurationError: there are steps, and the codec writes none.
      PayloadError: a payload is not valid.
    """
    whole = model_codec(down_codec)
    for payload in steps:
        replica = whole.decode(spec, model, kind="model")
        step = get_difference_codec(down_codec).decode(spec, payload, kind="step", local=local)
        model = whole.encode(spec, apply_step(replica, step), kind="model")
    return model

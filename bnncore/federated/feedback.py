"""What a device learnt, told as a difference: the sender's way up, with error feedback.

``x = latent - base + e``: the signs of x and their scales travel, what they could not say is the next ``e``
(Karimireddy et al., 2019, arXiv 1901.09847, Algorithm 1, with the whole local training as its gradient). ``e`` is one
byte a weight, a part of what the device keeps between the rounds of a job (``local_state``).
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import numpy as np

from bnncore.codec import NONE_LOCAL, Difference, DifferenceCodec, encode_signs
from bnncore.spec import ModelSpec
from bnncore.state import State, to_int8

__all__ = ["tell_difference"]


def tell_difference(
    spec: ModelSpec,
    trained: State,
    base: State,
    feedback: State | None,
    codec: DifferenceCodec,
    local: AbstractSet[str] = NONE_LOCAL,
) -> tuple[Difference, State]:
    """Say what local training changed.

    Args:
      spec: the network.
      trained: weights (int8, or float32 that is rounded to int8), beta and the statistics that shall travel.
      base: the model that training started from.
      feedback: int8 by name of shared weight tensor, from this job's last accepted update; None or empty: nothing is
        owed.
      codec: what will write the difference.
      local: names of the tensors that stay on the device, of which nothing is told.

    Returns:
      The difference, and the feedback for the next update.
    """
    difference: Difference = {}
    remaining: State = {}
    for tensor in spec.tensors:
        name = tensor.name
        if name in local:
            continue
        if tensor.role == "weight":
            owed = feedback[name] if feedback else None
            latent, start = to_int8(trained[name]), to_int8(base[name])
            difference[name], remaining[name] = encode_signs(latent, start, owed, density=codec.density)
        elif tensor.is_statistic:
            difference[name] = trained[name]
        else:
            difference[name] = (trained[name] - base[name]).astype(np.float32)
    return difference, remaining

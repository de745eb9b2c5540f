"""What a device learnt, told as a difference: the sender's way up, with error feedback.

``x = latent - base + e``: the signs of x and their scales travel, what they could not say is the next ``e``
(Karimireddy et al., 2019, arXiv 1901.09847, Algorithm 1, with the whole local training as its gradient). ``e`` is one
byte a weight, kept in a file between the rounds of a job, and takes the place of the old one only when the update that
it belongs to was accepted: an update that was lost takes nothing with it but itself.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from bnncore.codec import Difference, DifferenceCodec, encode_signs
from bnncore.codec.container import unpack, write
from bnncore.durable import replace_file
from bnncore.errors import PayloadError, ShapeError
from bnncore.spec import ModelSpec
from bnncore.state import State, to_int8

__all__ = ["read_feedback", "tell_difference", "write_feedback"]


def tell_difference(
    spec: ModelSpec, trained: State, base: State, feedback: State | None, codec: DifferenceCodec
) -> tuple[Difference, State]:
    """Say what local training changed.

    Args:
      spec: the network.
      trained: weights (int8, or float32 that is rounded to int8), beta and the statistics that shall travel.
      base: the model that training started from.
      feedback: int8 by name of weight tensor, from this job's last accepted update; None: nothing is owed.
      codec: what will write the difference.

    Returns:
      The difference, and the feedback for the next update.
    """
    difference: Difference = {}
    remaining: State = {}
    for tensor in spec.tensors:
        name = tensor.name
        if tensor.role == "weight":
            owed = None if feedback is None else feedback[name]
            latent, start = to_int8(trained[name]), to_int8(base[name])
            difference[name], remaining[name] = encode_signs(latent, start, owed, density=codec.density)
        elif tensor.is_statistic:
            difference[name] = trained[name]
        else:
            difference[name] = (trained[name] - base[name]).astype(np.float32)
    return difference, remaining


def write_feedback(path: Path, spec: ModelSpec, feedback: State) -> None:
    """Write feedback to a file that is complete or absent.

    Raises:
      OSError: the disk refused.
    """
    with replace_file(path) as file:
        write(file, feedback, _metadata(spec))


def read_feedback(path: Path, spec: ModelSpec) -> State:
    """Read feedback back.

    Raises:
      PayloadError: the file is damaged or of another network.
      OSError: it cannot be read.
    """
    tensors, metadata = unpack(path.read_bytes())
    if metadata != _metadata(spec):
        raise PayloadError(f"the feedback must be of {_metadata(spec)}, got {metadata!r:.200}")
    wanted = {tensor.name: tensor.shape for tensor in spec.tensors if tensor.role == "weight"}
    found = {name: array.shape for name, array in tensors.items() if array.dtype == np.int8}
    if found != wanted or len(tensors) != len(wanted):
        raise ShapeError(f"the feedback must hold int8 tensors {wanted}, got {found}")
    return {name: tensors[name] for name in wanted}


def _metadata(spec: ModelSpec) -> str:
    return json.dumps({"kind": "feedback", "spec": spec.digest}, sort_keys=True, separators=(",", ":"))

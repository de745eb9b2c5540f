"""What a device keeps between the rounds of a job: what its codec could not say, and tensors that are its own.

Both come with an update, and take the place of the older ones only when that update was accepted: one that was late or
lost takes nothing with it but itself.

Personalisation: tensors that a job names local are trained on each device, never leave it and are never overwritten by
a merge (FedBN keeps batch norm's so: Li et al., ICLR 2021, arXiv 2102.07623, Algorithm 1). A device that has none of
its own yet starts from those of the model. Statistics among them are not kept: they are taken anew in every round.
"""

from __future__ import annotations

import json
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bnncore.codec import NONE_LOCAL
from bnncore.codec.container import unpack, write
from bnncore.durable import replace_file
from bnncore.errors import PayloadError, ShapeError
from bnncore.spec import ModelSpec
from bnncore.state import State, to_float32, to_int8, validate_tensors

__all__ = ["LocalState", "own_tensors", "read_local_state", "with_own_tensors", "write_local_state"]


@dataclass(frozen=True)
class LocalState:
    """What one device keeps of one job.

    Attributes:
      feedback: int8 by name of shared weight tensor; empty where the codec says all.
      own: the local tensors by name, weights in the dtype of the engine.
    """

    feedback: State = field(default_factory=dict)
    own: State = field(default_factory=dict)


def own_tensors(spec: ModelSpec, trained: State, local: AbstractSet[str]) -> State:
    """Copy the tensors that a device keeps out of the state that it has trained."""
    return {
        tensor.name: trained[tensor.name].copy()
        for tensor in spec.tensors
        if tensor.name in local and not tensor.is_statistic
    }


def with_own_tensors(spec: ModelSpec, model: State, own: State) -> State:
    """Put a device's own tensors in the place of the model's; weights take the dtype that the model's have."""
    weights = {tensor.name for tensor in spec.tensors if tensor.role == "weight"}
    fitted = {
        name: array if name not in weights else (to_int8 if model[name].dtype == np.int8 else to_float32)(array)
        for name, array in own.items()
    }
    return {**model, **fitted}


def write_local_state(path: Path, spec: ModelSpec, state: LocalState, local: AbstractSet[str] = NONE_LOCAL) -> None:
    """Write a local state to a file that is complete or absent.

    Raises:
      OSError: the disk refused.
    """
    with replace_file(path) as file:
        write(file, {**state.feedback, **state.own}, _metadata(spec, local))


def read_local_state(path: Path, spec: ModelSpec, local: AbstractSet[str] = NONE_LOCAL) -> LocalState:
    """Read a local state back.

    Args:
      path: its file.
      spec: the network.
      local: names of the tensors that are local in the job.

    Raises:
      PayloadError, ShapeError: the file is damaged, or of another network or other local tensors.
      OSError: it cannot be read.
    """
    tensors, metadata = unpack(path.read_bytes())
    if metadata != _metadata(spec, local):
        raise PayloadError(f"the local state must be of {_metadata(spec, local):.400}, got {metadata!r:.400}")
    kept = [tensor for tensor in spec.tensors if tensor.name in local and not tensor.is_statistic]
    own = {tensor.name: tensors.pop(tensor.name) for tensor in kept if tensor.name in tensors}
    validate_tensors(spec, own, kept)
    weights = [tensor for tensor in spec.tensors if tensor.role == "weight"]
    owed = {tensor.name: tensor.shape for tensor in weights if tensor.name not in local}
    found = {name: array.shape for name, array in tensors.items() if array.dtype == np.int8}
    if tensors and (found != owed or len(tensors) != len(owed)):
        raise ShapeError(f"the feedback must hold int8 tensors {owed}, got {found}")
    return LocalState({name: tensors[name] for name in owed if tensors}, own)


def _metadata(spec: ModelSpec, local: AbstractSet[str]) -> str:
    metadata = {"kind": "local_state", "local": sorted(local), "spec": spec.digest}
    return json.dumps(metadata, sort_keys=True, separators=(",", ":"))

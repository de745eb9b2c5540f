"""Checkpoints: a network with its weights in one file that any safetensors reader opens.

The file's one metadata string holds the spec, what the writer added (``extra``), and a digest over all of it, so a
file that was cut or altered is never taken for a model. Writing survives a power cut: the old file or the new one.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnncore.codec.container import unpack, write
from bnncore.durable import replace_file
from bnncore.errors import CheckpointError, IncompatibleError, SpecError
from bnncore.spec import ModelSpec
from bnncore.state import State, has_statistics, validate_state, weights_digest

__all__ = ["Checkpoint", "load_checkpoint", "save_checkpoint"]

FORMAT = "bitfleet.checkpoint"
TRAINING_FORMAT = "bitfleet.training"
"""Format of the files that bnncore.resume writes."""
VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A network, its state and what was saved with them.

    Attributes:
      spec: the network.
      state: its tensors; the arrays are read-only.
      extra: JSON values that the writer added (optimizer, epochs, accuracy, ...).
      weights_digest: ``bnncore.state.weights_digest`` of the state.
    """

    spec: ModelSpec
    state: State
    extra: dict[str, Any]
    weights_digest: str


def save_checkpoint(path: str | Path, spec: ModelSpec, state: State, *, extra: dict[str, Any] | None = None) -> str:
    """Write a checkpoint; a file of that name is replaced in one step.

    Args:
      path: the file; its folder must exist.
      spec: the network.
      state: valid for the network, with or without statistics.
      extra: JSON values to keep beside the weights.

    Returns:
      The weights' digest.

    Raises:
      ShapeError, PayloadError: the state is not valid for the network.
      CheckpointError: the file cannot be written.
    """
    validate_state(spec, state, statistics=has_statistics(spec, state))
    digest = weights_digest(spec, state)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "spec": spec.to_dict(),
        "extra": json.loads(_canonical(extra or {})),
        "weights_digest": digest,
    }
    metadata["digest"] = _digest(metadata)
    tensors = {name: state[name] for name in spec.tensor_shapes() if name in state}
    try:
        with replace_file(Path(path)) as file:
            write(file, tensors, _canonical(metadata))
    except OSError as error:
        raise CheckpointError(f"the checkpoint cannot be written to {path}: {error}. Choose another path") from error
    return digest


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint and verify every byte that matters in it.

    Raises:
      CheckpointError: the file is missing, cut, corrupted, or of another program or version.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"the checkpoint cannot be read: {error}. Check the path") from error
    advice = "Was the copy complete? Copy or make it again"
    try:
        tensors, text = unpack(data)
        metadata = json.loads(text)
        if isinstance(metadata, dict) and metadata.get("format") == TRAINING_FORMAT:
            raise CheckpointError(
                f"{path} is a run that bitfleet train --checkpoint keeps, not a network. Go on with it: "
                f"--resume {path} --save FILE writes the network at its end"
            )
        if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
            raise CheckpointError(f"{path} must be a checkpoint of bitfleet, but its metadata say otherwise. {advice}")
        if metadata.get("version") != VERSION:
            raise CheckpointError(
                f"{path} has checkpoint version {metadata.get('version')!r:.40}, this bitfleet reads version "
                f"{VERSION}. Upgrade it with: pip install --upgrade bitfleet"
            )
        claimed = metadata.pop("digest", None)
        if claimed != _digest(metadata):
            raise CheckpointError(f"the metadata of {path} do not have the digest {claimed!r:.80} they claim. {advice}")
        spec = ModelSpec.from_dict(metadata["spec"])
        state = {name: tensors.pop(name) for name in spec.tensor_shapes() if name in tensors} | tensors
        validate_state(spec, state, statistics=has_statistics(spec, state))
        claimed_weights, extra = metadata["weights_digest"], metadata["extra"]
        if not isinstance(extra, dict):
            raise CheckpointError(f"extra in {path} must be a JSON object, got {type(extra).__name__}. {advice}")
    except (IncompatibleError, SpecError, ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path} is no valid checkpoint: {error}. {advice}") from error
    digest = weights_digest(spec, state)
    if digest != claimed_weights:
        raise CheckpointError(
            f"the weights in {path} have digest {digest}, the file says {claimed_weights!r:.80}. {advice}"
        )
    return Checkpoint(spec, state, extra, digest)


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _digest(metadata: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(metadata).encode()).hexdigest()

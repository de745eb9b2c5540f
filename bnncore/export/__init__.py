"""A trained network for other programs: ONNX, and a packed file of a bit a weight.

Both are made of ``folded.fold``: what a prediction takes, as whole numbers and thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bnncore.durable import replace_file
from bnncore.errors import CheckpointError, ConfigurationError
from bnncore.spec import ModelSpec
from bnncore.state import State

__all__ = ["SUFFIXES", "export_model"]

SUFFIXES = {"onnx": ".onnx", "packed": ".bfpk"}
"""Formats, and how their files' names end."""


def export_model(path: Path, kind: str, spec: ModelSpec, state: State, *, classes: Sequence[str] = ()) -> int:
    """Write a trained network for other programs; the file appears complete or not at all.

    Args:
      path: the file.
      kind: one of ``SUFFIXES``.
      spec: the network.
      state: its tensors, running statistics included.
      classes: their names, kept in the file.

    Returns:
      The file's bytes.

    Raises:
      ConfigurationError: onnx is not installed.
      ShapeError, PayloadError: the state is not one of this network, or has no statistics.
      CheckpointError: the file cannot be written.
    """
    if kind == "packed":
        from bnncore.export.packed import pack

        data = pack(spec, state, classes=classes)
    else:
        try:
            from bnncore.export.onnx_model import onnx_model
        except ImportError as error:
            raise ConfigurationError(f"ONNX needs a package: pip install 'bitfleet[onnx]' ({error})") from error
        data = onnx_model(spec, state, classes=classes).SerializeToString()
    try:
        with replace_file(path) as file:
            file.write(data)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error}. Choose another path") from error
    return len(data)

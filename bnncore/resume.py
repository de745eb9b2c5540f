"""Training that stops and goes on: all of it in one file, and the same weights at the end, bit for bit.

The file is a safetensors file like a checkpoint's, but holds the optimizer's state, the delayed scales and the
counters as well. What has another dtype than int8 and float32 is kept as its bytes. Writing survives a power cut: the
old file or the new one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.checkpoint import TRAINING_FORMAT
from bnncore.codec.container import unpack, write
from bnncore.durable import replace_file
from bnncore.engine import Engine
from bnncore.errors import CheckpointError, PayloadError, ShapeError
from bnncore.training import EpochResult, Progress

__all__ = ["load_training", "save_training"]

VERSION = 1


def save_training(path: str | Path, engine: Engine, progress: Progress, settings: Mapping[str, Any]) -> None:
    """Write where a run stands; a file of that name is replaced in one step.

    Args:
      path: the file; its folder must exist.
      engine: between two steps.
      progress: of the run.
      settings: JSON values that decide the run (data set, batch size, schedule, ...): it only goes on under the same.

    Raises:
      CheckpointError: the file cannot be written.
    """
    tensors, counters = engine.training_state()
    plain = {name: _as_bytes(array) for name, array in tensors.items()}
    metadata = {
        "format": TRAINING_FORMAT,
        "version": VERSION,
        "settings": _settings(engine, settings),
        "counters": counters,
        "progress": dataclasses.asdict(progress),
        "digest": _digest(plain),
    }
    try:
        with replace_file(Path(path)) as file:
            write(file, plain, json.dumps(metadata, sort_keys=True))
    except OSError as error:
        raise CheckpointError(f"the run cannot be saved to {path}: {error}. Choose another path") from error


def load_training(path: str | Path, engine: Engine, settings: Mapping[str, Any]) -> Progress:
    """Put an engine where a saved run stood.

    Args:
      path: a file that ``save_training`` wrote.
      engine: of the same network, optimizer and batch size.
      settings: as they were given to ``save_training``.

    Returns:
      How far the run had come.

    Raises:
      CheckpointError: the file is missing, cut or altered, or of another run; the message says what differs. The
        engine is as it was.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"the saved run cannot be read: {error}. Check the path") from error
    advice = "Was the copy complete? Without the file the run starts anew"
    try:
        tensors, text = unpack(data)
        metadata = json.loads(text)
        if not isinstance(metadata, dict) or metadata.get("format") != TRAINING_FORMAT:
            raise CheckpointError(
                f"{path} is no saved run of bitfleet, which --checkpoint keeps; --save writes a network. {advice}"
            )
        if metadata.get("version") != VERSION:
            raise CheckpointError(f"{path} has version {metadata.get('version')!r:.40}, this bitfleet reads {VERSION}")
        if metadata["digest"] != _digest(tensors):
            raise CheckpointError(f"the tensors of {path} are not those that were saved. {advice}")
        differences = _differences(_object(metadata, "settings"), _settings(engine, settings))
        if differences:
            raise CheckpointError(
                f"{path} is a run with other settings: {differences}. Give the options it was started with, or another "
                "file"
            )
        progress = _read_progress(_object(metadata, "progress"))
        counters = _object(metadata, "counters")
        for name, number in counters.items():
            is_power = name.endswith("_power")
            _check_number(name, number, "float" if is_power else "int")
            if is_power and not 0 <= number <= 1:
                raise TypeError(f"{name} must lie in [0, 1], got {number}")
        engine.load_training_state(tensors, counters)
    except (PayloadError, ShapeError, TypeError, ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path} is no valid saved run: {error}. {advice}") from error
    return progress


def _object(metadata: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = metadata[name]
    if not isinstance(value, dict):
        raise TypeError(f"{name} must be a JSON object, got {type(value).__name__}")
    return value


def _read_progress(value: dict[str, Any]) -> Progress:
    for name in ("epochs", "schedule", "notes"):
        if not isinstance(value[name], list):
            raise TypeError(f"{name} must be a list, got {value[name]!r:.40}")
    progress = Progress(**{**value, "epochs": [EpochResult(**epoch) for epoch in value["epochs"]]})
    parts: list[Progress | EpochResult] = [progress, *progress.epochs]
    for part in parts:
        for field in dataclasses.fields(part):
            _check_number(field.name, getattr(part, field.name), field.type)
    for number in progress.schedule:
        _check_number("schedule", number, "float")
    return progress


_LIMITS = {"seed": 1 << 64, "statistics_steps": 1 << 31}
"""What a counter of the engine must stay below; for the others it is 2^63."""


def _check_number(name: str, value: object, kind: object) -> None:
    limit = _LIMITS.get(name, 1 << 63)
    if kind == "int" and (type(value) is not int or not 0 <= value < limit):
        raise TypeError(f"{name} must be a count below {limit}, got {value!r:.40}")
    if kind == "float" and type(value) is not float and (type(value) is not int or abs(value) >= limit):
        raise TypeError(f"{name} must be a number, got {value!r:.40}")


def _settings(engine: Engine, settings: Mapping[str, Any]) -> dict[str, Any]:
    own = {
        "model": engine.spec.digest,
        "preset": engine.preset.digest,
        "batch_size": engine.batch_size,
    }
    merged: dict[str, Any] = json.loads(json.dumps({**settings, **own}))
    return merged


def _differences(saved: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    names = sorted(name for name in {*saved, *given} if saved.get(name) != given.get(name))
    return ", ".join(f"{name} was {_brief(saved.get(name))}, is {_brief(given.get(name))}" for name in names)


def _brief(value: object) -> str:
    if value is None:
        return "not given"
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."  # long ones are digests


def _as_bytes(array: NDArray[Any]) -> NDArray[Any]:
    flat = array.reshape(-1)
    return flat if flat.dtype in (np.int8, np.float32) else flat.view(np.int8)


def _digest(tensors: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + b"\0")
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()

"""Classes of files by a model that lies on this device."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.checkpoint import Checkpoint, load_checkpoint
from bnncore.data import InputRange
from bnncore.data.image_folder import IMAGE_SUFFIXES
from bnncore.data.image_reader import check_pillow, read_image
from bnncore.data.images import image_shape_of
from bnncore.errors import CheckpointError, DataError
from bnncore.predictor import Predictor
from bnncore.state import has_statistics

__all__ = ["Classifier", "Guess"]

ROW_SUFFIXES = (".csv", ".txt", ".npy")
_MAX_ROW_FILE = 64 << 20


@dataclass(frozen=True)
class Guess:
    """What a model says of one sample.

    Attributes:
      source: the file, with the number of the row where it has several.
      scores: by class name, the most likely first; they add up to 1.
    """

    source: str
    scores: dict[str, float]

    @property
    def best(self) -> str:
        """The most likely class."""
        return next(iter(self.scores))


class Classifier:
    """A model and the names of its classes.

    Args:
      path: a checkpoint.

    Raises:
      CheckpointError: it cannot be read, or cannot classify.
      DataError: its range of real numbers does not fit its input.
    """

    def __init__(self, path: Path) -> None:
        checkpoint = load_checkpoint(path)
        self.spec = checkpoint.spec
        if not has_statistics(checkpoint.spec, checkpoint.state):
            raise CheckpointError(
                f"{path} has no running statistics, which classifying needs: it is a model as devices receive it. "
                "Take one that was trained here, or that the coordinator exported"
            )
        self.classes = _classes_of(checkpoint)
        told = checkpoint.extra.get("input_range")
        self._range = None if told is None else InputRange.from_dict(told)
        if self._range is not None:
            self._range.check_fits(self.spec.input_shape)
        self._predictor = Predictor(checkpoint.spec, checkpoint.state, batch_size=1)

    def classify(self, path: Path) -> Iterator[Guess]:
        """Classify a picture, or each row of a file of numbers.

        Raises:
          DataError: the file is none that this model reads; the message names it and says why.
        """
        if not path.exists():
            raise DataError(f"{path} does not exist (seen from {Path.cwd()})")
        suffix = path.suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            yield Guess(str(path), self._scores(self._picture(path)))
            return
        if suffix not in ROW_SUFFIXES:
            known = ", ".join([*sorted(IMAGE_SUFFIXES), *ROW_SUFFIXES])
            raise DataError(f"{path} is neither a picture nor a file of rows by its name; known are {known}")
        rows = self._rows(path)
        for number, row in enumerate(rows, 1):
            yield Guess(str(path) if len(rows) == 1 else f"{path}:{number}", self._scores(row))

    def _picture(self, path: Path) -> NDArray[np.uint8]:
        shape = image_shape_of(self.spec.input_shape)
        if shape is None or self._range is not None:
            raise DataError(
                f"{path} is a picture, the model reads rows of {math.prod(self.spec.input_shape)} numbers (shape "
                f"{list(self.spec.input_shape)})"
            )
        check_pillow()
        try:
            return read_image(path, shape)
        except DataError as error:
            raise DataError(f"{path} cannot be read as a picture: {error}") from error

    def _rows(self, path: Path) -> NDArray[np.uint8]:
        """Read rows: uint8 [rows, features]."""
        features = self.spec.input_features
        try:
            if path.stat().st_size > _MAX_ROW_FILE:
                raise DataError(f"{path} is larger than {_MAX_ROW_FILE >> 20} MiB; classify a part of it")
            values: NDArray[Any]
            if path.suffix.lower() == ".npy":
                values = np.load(path, allow_pickle=False)
            else:
                with warnings.catch_warnings(action="ignore", category=UserWarning):  # of a file without rows
                    values = np.loadtxt(path, delimiter="," if path.suffix.lower() == ".csv" else None, ndmin=2)
            rows = values.astype(np.float64).reshape(-1, features)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"{path} must be numbers, {features} a row (samples of shape {list(self.spec.input_shape)}): {error}"
            ) from error
        if not len(rows):
            raise DataError(f"{path} has no rows")
        if not np.isfinite(rows).all():
            raise DataError(f"{path} has values that are no numbers")
        if self._range is not None:
            return self._range.quantise(rows.reshape(-1, *self.spec.input_shape)).reshape(rows.shape)
        if (rows != np.clip(np.rint(rows), 0, 255)).any():
            raise DataError(
                f"{path} must have whole numbers from 0 to 255: the model reads 8-bit samples and names no range"
            )
        return rows.astype(np.uint8)

    def _scores(self, sample: NDArray[np.uint8]) -> dict[str, float]:
        """Give each class's probability: e to the minus of the loss that it would have as the right one."""
        predictor = self._predictor
        predictor.input[0] = sample.reshape(-1)
        scores = {}
        for number, name in enumerate(self.classes):
            predictor.labels[0] = number
            scores[name] = math.exp(-predictor.evaluate_batch(1).loss)
        return dict(sorted(scores.items(), key=lambda score: -score[1]))


def _classes_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    names = checkpoint.extra.get("classes")
    if isinstance(names, list) and 0 < len(names) <= checkpoint.spec.classes:
        return tuple(map(str, names))
    return tuple(map(str, range(checkpoint.spec.classes)))

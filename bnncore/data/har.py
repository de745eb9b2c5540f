"""Data set ``har``: what a phone at the waist of 30 people measured while they walked, sat, stood and lay (UCI, 2012).

A sample is a window of 2.56 s: 128 readings of 6 channels, the total acceleration in x, y and z (g) and the angular
velocity in x, y and z (rad/s). Read from the publisher's text files, or from the same numbers as ``.npy.xz``, and
quantised to uint8 by fixed ranges, so that a device that measures can do the same. ``groups`` holds the people: windows
overlap by half, so only a split by person keeps training and test data apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bnncore.data.dataset import Dataset
from bnncore.data.idx import Split, open_idx, write_idx_parts
from bnncore.data.input_range import InputRange
from bnncore.data.preparation import prepared
from bnncore.errors import DataError

__all__ = [
    "FOLDER_NAME",
    "HAR_DESCRIPTION",
    "HAR_RANGE",
    "MAX_TEXT_BYTES",
    "har_files",
    "har_members",
    "open_har",
    "prepare_har",
]

FOLDER_NAME = "UCI HAR Dataset"
_WINDOW = 128
_CHANNELS = ("total_acc_x", "total_acc_y", "total_acc_z", "body_gyro_x", "body_gyro_y", "body_gyro_z")
_ACCELERATION_LIMIT = 2.0
"""g, the sensor's own range; 0.04 % of the readings in x lie beyond it, none in y and z."""
_ANGULAR_VELOCITY_LIMIT = 4.0
"""rad/s; 0.001 % of the readings in x and 0.003 % of those in y lie beyond it, none in z."""
_LIMITS = (_ACCELERATION_LIMIT,) * 3 + (_ANGULAR_VELOCITY_LIMIT,) * 3
HAR_RANGE = InputRange(tuple(-limit for limit in _LIMITS), _LIMITS)
"""What the readings are quantised by: also for a device that measures them itself."""
MAX_TEXT_BYTES = 1 << 27
"""Most of a file; a text file of the publisher's has 15 MB."""

HAR_DESCRIPTION: dict[str, Any] = {
    "kind": "signals",
    "sample_rate_hz": 50,
    "quantisation": "u = round((clip(v, low, high) - low) * 255 / (high - low)), ties to even",
    "channels": [
        {"name": name, "unit": "g" if "acc" in name else "rad/s", "low": low, "high": high}
        for name, low, high in zip(_CHANNELS, HAR_RANGE.low, HAR_RANGE.high, strict=True)
    ],
}
"""What the numbers mean; kept with the prepared data."""


def har_files(root: Path, split: Split) -> dict[str, Path]:
    """Find the files of one split below a data folder.

    Looks in ``har/UCI HAR Dataset``, in ``UCI HAR Dataset`` and in the folder itself; a signal may be the publisher's
    ``.txt`` or a ``.npy.xz``.

    Returns:
      Their paths: each channel's by its name, then ``y``, ``subject`` and ``activity_labels``.

    Raises:
      DataError: no folder has them all; the message says what was looked for and what is missing.
    """
    folders = (root / "har" / FOLDER_NAME, root / FOLDER_NAME, root)
    incomplete = ""
    for folder in folders:
        wanted: dict[str, tuple[Path, ...]]
        wanted = {name: (folder / member,) for name, member in _members(split).items()}
        wanted |= {name: (wanted[name][0].with_suffix(".npy.xz"), *wanted[name]) for name in _CHANNELS}
        found = {name: path for name, places in wanted.items() for path in places if path.is_file()}
        if len(found) == len(wanted):
            return found
        if found and not incomplete:
            lacking = ", ".join(str(places[-1].relative_to(folder)) for n, places in wanted.items() if n not in found)
            incomplete = f" ({folder} has some, but lacks {lacking})"
    raise DataError(
        f"no HAR ({split}) in {root}: looked for activity_labels.txt, {split}/y_{split}.txt, "
        f"{split}/subject_{split}.txt and {split}/Inertial Signals/NAME_{split}.txt or .npy.xz, where NAME is "
        f"{', '.join(_CHANNELS)}, in {', '.join(map(str, folders))}{incomplete}. Give --data DIR, or fetch "
        "it there with --download"
    )


def har_members() -> list[str]:
    """Name the files that both splits are read from, as they lie in the publisher's folder."""
    train, test = _members("train"), _members("test")
    return list(dict.fromkeys([train["activity_labels"], *train.values(), *test.values()]))


def _members(split: Split) -> dict[str, str]:
    """Where the publisher has what a split is read from: each channel, then the labels, the people and the classes."""
    signals = {name: f"{split}/Inertial Signals/{name}_{split}.txt" for name in _CHANNELS}
    columns = {name: f"{split}/{name}_{split}.txt" for name in ("y", "subject")}
    return signals | columns | {"activity_labels": "activity_labels.txt"}


def open_har(root: Path, *, split: Split) -> Dataset:
    """Open one split of HAR; the first time, a process of its own prepares it.

    Args:
      root: the data folder.
      split: ``train`` (7352 windows of [128, 6] from 21 people) or ``test`` (2947 from 9 others).

    Raises:
      DataError: files are missing or damaged, or the cache cannot be written.
    """
    files = har_files(root, split)
    return open_idx(prepared("har", split, root, list(files.values())), split=split, name="har")


def prepare_har(root: Path, split: Split, folder: Path) -> None:
    """Write one split as an idx folder (in the preparation process).

    Raises:
      DataError: files are missing or damaged, or their sizes disagree.
      OSError: the folder cannot be written.
    """
    files = har_files(root, split)
    classes = _read_classes(files["activity_labels"])
    labels = _read_column(files["y"], 1, len(classes)) - np.uint8(1)
    people = _read_column(files["subject"], 1, 255)
    if len(people) != len(labels):
        raise DataError(f"{files['subject']} must have {len(labels)} rows as {files['y']} has, got {len(people)}")
    windows = np.empty((len(labels), _WINDOW, len(_CHANNELS)), np.uint8)
    for channel, name in enumerate(_CHANNELS):
        own = InputRange((HAR_RANGE.low[channel],), (HAR_RANGE.high[channel],))
        windows[:, :, channel] = own.quantise(_read_signal(files[name], len(labels)))
    write_idx_parts(
        folder,
        [(windows, labels)],
        split,
        shape=windows.shape,
        classes=classes,
        groups=people,
        description=HAR_DESCRIPTION,
    )


def _read_classes(path: Path) -> list[str]:
    rows = [line.split() for line in path.read_text("utf-8", "replace").splitlines() if line.strip()]
    if (
        not rows
        or [row[0] for row in rows] != [str(n) for n in range(1, len(rows) + 1)]
        or {len(r) for r in rows} != {2}
    ):
        raise DataError(f"{path} must have a number from 1 on and a name in each row, got {rows!r:.200}")
    return [name for _, name in rows]


def _read_column(path: Path, low: int, high: int) -> NDArray[np.uint8]:
    try:
        numbers = [int(text) for text in path.read_text("ascii").split()]
    except ValueError as error:
        raise DataError(f"{path} must have one integer in each row: {error}") from error
    if not numbers or min(numbers) < low or max(numbers) > high:
        raise DataError(
            f"{path} must have integers in [{low}, {high}], got {numbers[:3]}... up to {max(numbers, default=0)}"
        )
    return np.array(numbers, np.uint8)


def _read_signal(path: Path, count: int) -> NDArray[np.float32]:
    """Read one channel: float32 [count, 128], finite."""
    from bnncore.data.unpacking import unpacked  # brings lzma, which the training process does without

    with unpacked(path, max_bytes=MAX_TEXT_BYTES) as file:
        values = _read_text(file, path) if path.suffix == ".txt" else _read_npy(file, path, (count, _WINDOW))
    if values.shape != (count, _WINDOW):
        raise _wrong_shape(path, (count, _WINDOW), values.shape)
    if not np.isfinite(values).all():
        raise DataError(f"{path} must hold finite numbers, got {values[~np.isfinite(values)][0]}")
    return values


def _read_text(file: BinaryIO, path: Path) -> NDArray[np.float32]:
    try:
        return np.loadtxt(file, dtype=np.float64, ndmin=2).astype(np.float32)
    except ValueError as error:
        raise DataError(f"{path} cannot be read: {error}. Is the file complete?") from error


def _read_npy(file: BinaryIO, path: Path, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Read an array after a look at its head: nothing of another size is allocated, nothing is unpickled."""
    try:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"format {version[0]}.{version[1]}, where 1.0 is read")
        found, column_major, dtype = np.lib.format.read_array_header_1_0(file)
    except ValueError as error:
        raise DataError(f"{path} must hold an array as numpy.save writes it: {error}") from error
    if found != shape or dtype != np.dtype("<f4") or column_major:
        raise _wrong_shape(path, shape, found, f"{dtype}{' in columns' if column_major else ''} ")
    data = file.read(4 * shape[0] * shape[1] + 1)
    if len(data) != 4 * shape[0] * shape[1]:
        raise DataError(f"{path} must have {4 * shape[0] * shape[1]} bytes after its head, got {len(data)}")
    return np.frombuffer(data, "<f4").reshape(shape)


def _wrong_shape(path: Path, wanted: Sequence[int], got: Sequence[int], dtype: str = "") -> DataError:
    return DataError(
        f"{path} must hold float32 {list(wanted)}, one row of {_WINDOW} readings for each label, got {dtype}{list(got)}"
    )

"""Opening a table: its numbers quantised by a range, in a process of its own, into rows of the cache."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from bnncore.data.cache import cache_error, cache_folder
from bnncore.data.dataset import Broken, Dataset
from bnncore.data.idx import Split
from bnncore.data.input_range import InputRange
from bnncore.data.preparation import prepare
from bnncore.data.tables.sources import find_tables, is_being_written
from bnncore.data.tables.values import TableValues, write_values
from bnncore.data.view import View, is_whole, open_view, tell_broken, write_view
from bnncore.durable import replace_file
from bnncore.errors import DataError

__all__ = ["open_table", "own_range", "prepare_table", "survey_table"]

_BLOCK_BYTES = 1 << 20
_FORMS_KEPT = 4


def open_table(
    kind: str,
    root: Path,
    *,
    split: Split,
    input_range: InputRange | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> Dataset:
    """Open one split of a table.

    Args:
      kind: one of ``TABLE_KINDS``.
      root: the data folder.
      split: which one.
      input_range: what the numbers are quantised by; None: what the training split has, column by column, or channel by
        channel where a row has several axes.
      input_shape: of a row; None: as it lies there.

    Returns:
      The data set; ``description["input_range"]`` says what it was quantised by.

    Raises:
      DataError: there are no files or no rows, they are damaged, or shape or range do not fit them.
    """
    values, table = _values(kind, root)
    natural = tuple(table.input_shape)
    shape = input_shape or natural
    if math.prod(shape) != math.prod(natural):
        raise DataError(f"the rows in {root} have {math.prod(natural)} numbers, samples of shape {list(shape)} others")
    input_range = input_range or own_range(table, shape)
    input_range.check_fits(shape)
    if not table.counts[split]:
        raise DataError(
            f"no rows for the {split} split in {root}: give test.{kind} beside train.{kind}, or more rows in files of "
            "other names, of which one in ten is in it"
        )
    form = json.dumps({"shape": shape, **input_range.to_dict()})
    folder = values / f"{split}-{hashlib.sha256(form.encode()).hexdigest()[:16]}"
    dataset = open_view(folder, name=kind)
    if dataset is None:
        dataset = open_view(prepare(kind, split, root, folder, options=(form,)), name=kind)
    if dataset is None:
        raise DataError(f"the rows of {root} were prepared in {folder} and have gone from there. Try again")
    return tell_broken(dataset, f"rows ({split})")


def survey_table(kind: str, root: Path) -> TableValues:
    """Say what a table holds; the first time, and when its files have changed, a process of its own reads them.

    Raises:
      DataError: there are no files or no rows, or they are damaged.
    """
    return _values(kind, root)[1]


def _values(kind: str, root: Path) -> tuple[Path, TableValues]:
    folder = _folder(kind, root)
    table = TableValues.read(folder)
    if table is None:
        table = TableValues.read(prepare(kind, "train", root, folder))
    if table is None:
        raise DataError(f"the rows of {root} were prepared in {folder} and have gone from there. Try again")
    return folder, table


def prepare_table(root: Path, split: Split, folder: Path, form: str | None = None, *, kind: str) -> None:
    """Read a table, or quantise what was read of it (in the preparation process).

    Args:
      root: the data folder.
      split: which one is quantised.
      folder: to write: a folder of values; with a form, a view within one.
      form: shape and range, as JSON.
      kind: one of ``TABLE_KINDS``.

    Raises:
      DataError: as ``write_values``.
      OSError: the folder cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / "lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_whole(folder) if form else TableValues.read(folder) is not None:
            return  # another process has made it meanwhile; whoever asked for it opens it now
        if form is None:
            write_values(kind, root, folder)
            _keep_newest(folder.parent, 2)
            return
        told = json.loads(form)
        _quantise(folder.parent, split, folder, tuple(told["shape"]), InputRange.from_dict(told))
        _keep_newest(folder.parent, _FORMS_KEPT)


def _quantise(values: Path, split: Split, folder: Path, shape: tuple[int, ...], input_range: InputRange) -> None:
    table = TableValues.read(values)
    if table is None:
        raise DataError(f"{values} has gone while it was needed. Try again")
    count, width = table.counts[split], math.prod(shape)
    at_once = max(1, _BLOCK_BYTES // (8 * width))
    rows = values / f"{folder.name}.rows"
    with open(values / f"{split}.values", "rb") as source, replace_file(rows) as target:
        for first in range(0, count, at_once):
            block = np.fromfile(source, np.float64, min(at_once, count - first) * width)
            target.write(input_range.quantise(block.reshape(-1, *shape)).data)
    write_view(
        folder,
        View(
            rows=rows,
            labels=np.fromfile(values / f"{split}.labels", np.uint8),
            keys=np.fromfile(values / f"{split}.keys", np.uint64),
            classes=tuple(table.classes),
            input_shape=shape,
            broken=Broken(table.broken[split][0], tuple(table.broken[split][1])),
            description=_description(table, input_range),
        ),
    )


def _description(table: TableValues, input_range: InputRange) -> dict[str, Any]:
    return {
        "kind": "table",
        "columns": table.columns,
        "quantisation": "u = round((clip(v, low, high) - low) * 255 / (high - low)), ties to even",
        "input_range": input_range.to_dict(),
    }


def own_range(table: TableValues, shape: tuple[int, ...]) -> InputRange:
    """Give the range of the training split: of each channel, the last axis of a row of that shape."""
    low = np.array(table.low).reshape(-1, shape[-1]).min(axis=0)
    high = np.array(table.high).reshape(-1, shape[-1]).max(axis=0)
    high = np.where(high > low, high, np.nextafter(low, np.inf) + 1)  # a column that never changes
    return InputRange(tuple(low.tolist()), tuple(high.tolist()))


def _folder(kind: str, root: Path) -> Path:
    """Name the folder of the values: another one whenever a file has changed."""
    found = find_tables(kind, root)
    files = found if isinstance(found, list) else [path for paths in found.values() for path in paths]
    identity = []
    for path in files:
        try:
            status = path.stat()
            # What is read while a line is being written lacks that line: it is not what the file holds for good.
            pending = " pending" if is_being_written(path) else ""
            identity.append(f"{path.name} {status.st_size} {status.st_mtime_ns}{pending}")
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}") from error
    place = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cache_error(root, error) from error
    return cache_folder() / f"{kind}-{place}" / hashlib.sha256(chr(10).join(identity).encode()).hexdigest()[:16]


def _keep_newest(folder: Path, count: int) -> None:
    """Remove folders of what once was; whoever reads from there has the rows open."""
    places = sorted(
        (path for path in folder.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime_ns, reverse=True
    )
    for path in places[count:]:
        shutil.rmtree(path, ignore_errors=True)
        path.with_name(f"{path.name}.rows").unlink(missing_ok=True)

"""What tables hold, checked once and kept in the cache as plain numbers, whatever range they are quantised by later.

A folder has, for each split, ``<split>.values`` (float64 rows), ``<split>.labels`` (uint8), ``<split>.keys`` (uint64,
hashes of the rows) and, written last, ``table.json`` with all the rest.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from array import array
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bnncore.data.dataset import Broken
from bnncore.data.idx import Split
from bnncore.data.row_keys import key_of
from bnncore.data.tables.rows import Rows, Table
from bnncore.data.tables.sources import find_tables
from bnncore.durable import replace_file
from bnncore.errors import DataError

__all__ = ["TableValues", "write_values"]

_HEAD = "table.json"
_MOST_CLASSES = 256
_ONE_IN = 10
_NUMBER = re.compile(r"-?\d{1,18}")
_SPLITS: tuple[Split, ...] = ("train", "test")


@dataclass(frozen=True)
class TableValues:
    """The head of such a folder.

    Attributes:
      classes: of both splits, numbers in the order of the numbers, other names in theirs.
      columns: names of the columns; empty: they have none.
      input_shape: of a row.
      low: smallest number of each column of the training split.
      high: largest.
      counts: rows of each split.
      broken: of each split: (how many rows were left out, why the first of them).
    """

    classes: list[str]
    columns: list[str]
    input_shape: list[int]
    low: list[float]
    high: list[float]
    counts: dict[Split, int]
    broken: dict[Split, tuple[int, list[str]]]

    @staticmethod
    def read(folder: Path) -> TableValues | None:
        """Read a folder's head; None: there is none, or none that is whole, and it is to be made anew."""
        try:
            return TableValues(**json.loads((folder / _HEAD).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None


@dataclass
class _Part:
    """A split that is being written."""

    file: BinaryIO
    labels: array[int] = field(default_factory=lambda: array("H"))
    keys: array[int] = field(default_factory=lambda: array("Q"))
    broken: Broken = field(default_factory=Broken)


def write_values(kind: str, root: Path, folder: Path) -> None:
    """Read the tables below a data folder and write what they hold.

    Args:
      kind: one of ``TABLE_KINDS``.
      root: the data folder.
      folder: to write.

    Raises:
      DataError: there are none, they do not fit each other, or no row of the training split can be read.
      OSError: the folder cannot be written.

    Memory: some megabytes, and 20 bytes a row.
    """
    found, read = find_tables(kind, root), _reader(kind)
    folder.mkdir(parents=True, exist_ok=True)
    numbers: dict[str, int] = {}
    low = high = np.empty(0)
    first: tuple[Path, Table] | None = None
    with contextlib.ExitStack() as stack:
        files = {split: stack.enter_context(replace_file(folder / f"{split}.values")) for split in _SPLITS}
        parts = {split: _Part(file) for split, file in files.items()}
        for split, path in _files(found):
            table = read(path)
            if first is None:
                first = path, table
                low, high = (np.full(math.prod(table.input_shape), value) for value in (np.inf, -np.inf))
            _check_alike(first, (path, table))
            for rows in table.blocks:
                for part_split, chosen in _of_splits(split, path, table, rows, parts):
                    values = rows.values[chosen]
                    parts[part_split].file.write(values.data)
                    parts[part_split].labels.extend(_numbers(numbers, [rows.labels[row] for row in chosen], path))
                    parts[part_split].keys.extend(key_of(row.data) for row in values)
                    if part_split == "train" and len(values):
                        low, high = np.minimum(low, values.min(axis=0)), np.maximum(high, values.max(axis=0))
        if first is None or not parts["train"].labels:
            reason = (*parts["train"].broken.reasons, *parts["test"].broken.reasons, "there is none")[0]
            raise DataError(f"no row of the {kind} files in {root} can be read. The first: {reason}")
    order = _in_order(list(numbers))
    place = np.array([order.index(name) for name in numbers], np.uint8)
    for split, part in parts.items():
        _write(folder / f"{split}.labels", place[np.frombuffer(part.labels, np.uint16)] if part.labels else b"")
        _write(folder / f"{split}.keys", part.keys.tobytes())
    head = TableValues(
        classes=order,
        columns=list(first[1].columns),
        input_shape=list(first[1].input_shape),
        low=low.tolist(),
        high=high.tolist(),
        counts={split: len(part.labels) for split, part in parts.items()},
        broken={split: (part.broken.count, list(part.broken.reasons)) for split, part in parts.items()},
    )
    with replace_file(folder / _HEAD) as target:
        target.write(json.dumps(asdict(head)).encode())


def _reader(kind: str) -> Callable[[Path], Table]:
    # Only the preparation process comes here: the training process does without zipfile and pyarrow.
    from bnncore.data.tables.csv_rows import read_csv
    from bnncore.data.tables.npz_rows import read_npz
    from bnncore.data.tables.parquet_rows import read_parquet

    return {"csv": read_csv, "npz": read_npz, "parquet": read_parquet}[kind]


def _files(found: dict[Split, list[Path]] | list[Path]) -> list[tuple[Split | None, Path]]:
    """Give all files with their split; None: it is each row's own."""
    if isinstance(found, list):
        return [(None, path) for path in found]
    return [(split, path) for split in _SPLITS for path in found[split]]


def _of_splits(
    split: Split | None, path: Path, table: Table, rows: Rows, parts: dict[Split, _Part]
) -> list[tuple[Split, NDArray[np.intp]]]:
    """Say which of some rows belong to which split; what is broken is noted and in none."""
    finite = np.isfinite(rows.values)
    whole = finite.all(axis=1)
    noted = parts[split or "train"]
    problems = list(rows.problems)
    for row in np.flatnonzero(~whole):
        column = int(np.argmin(finite[row]))
        name = repr(table.columns[column]) if table.columns else str(column)
        problems.append(f"{rows.places[row]}, column {name}: {rows.values[row, column]:g} is no finite number")
    for problem in problems:
        noted.broken = noted.broken.with_one(f"{path}, {problem}")
    if split is not None:
        return [(split, np.flatnonzero(whole))]
    held_out = np.array([key_of(row.data) % _ONE_IN == 0 for row in rows.values], np.bool_)
    return [("train", np.flatnonzero(whole & ~held_out)), ("test", np.flatnonzero(whole & held_out))]


def _numbers(numbers: dict[str, int], labels: list[str], path: Path) -> list[int]:
    """Number the classes as they come."""
    found = [numbers.setdefault(label, len(numbers)) for label in labels]
    if len(numbers) > _MOST_CLASSES:
        raise DataError(
            f"{path} has more than {_MOST_CLASSES} classes, such as {list(numbers)[-1]!r}: is the label in the last "
            "column, or in one called 'label'?"
        )
    return found


def _in_order(names: list[str]) -> list[str]:
    if all(_NUMBER.fullmatch(name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _check_alike(first: tuple[Path, Table], other: tuple[Path, Table]) -> None:
    if (first[1].columns, first[1].input_shape) != (other[1].columns, other[1].input_shape):
        told = [", ".join(table.columns) or str(list(table.input_shape)) for _, table in (first, other)]
        raise DataError(f"{other[0]} must have the columns of {first[0]}, {told[0]:.200}; got {told[1]:.200}")


def _write(path: Path, content: Any) -> None:
    with replace_file(path) as file:
        file.write(content)

"""Reading CSV: numbers and a label in each line, separated by commas, read line by line."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

from bnncore.data.tables.rows import Rows, Table, label_column, rows_at_once
from bnncore.data.tables.sources import SETTLED_S
from bnncore.errors import DataError

__all__ = ["read_csv"]

_MAX_LINE = 1 << 20


def read_csv(path: Path) -> Table:
    """Read a CSV file.

    The first line names the columns where none of its cells but the label is a number. The label is in the column
    ``label``, or in the last one.

    Raises:
      DataError: it cannot be read, is empty, or has no two columns; the message says what was found.
    """
    rows = _cells(path)
    try:
        line, first = next(rows)
    except StopIteration:
        raise DataError(f"{path} is empty: it must have numbers and a label in each line") from None
    if len(first) < 2:
        raise DataError(
            f"{path} must have numbers and a label in each line, separated by commas, got {','.join(first)!r:.80}"
        )
    label = label_column(first)
    numbers = [_is_number(cell) for position, cell in enumerate(first) if position != label]
    has_names = not any(numbers)
    if has_names:
        columns = tuple(name for position, name in enumerate(first) if position != label)
    else:
        columns = tuple(str(position + 1) for position in range(len(first)) if position != label)
    if len(set(columns)) != len(columns):
        raise DataError(f"{path} must name each column once, got {', '.join(columns):.200}")
    begin = [] if has_names else [(line, first)]
    return Table(columns, (len(columns),), _blocks(begin, rows, columns, label))


def _blocks(
    begin: list[tuple[int, list[str]]], rows: Iterator[tuple[int, list[str]]], columns: tuple[str, ...], label: int
) -> Iterator[Rows]:
    at_once = rows_at_once(len(columns))
    values = np.empty((at_once, len(columns)), np.float64)
    labels: list[str] = []
    places: list[str] = []
    problems: list[str] = []

    def take(line: int, cells: list[str]) -> None:
        if len(cells) != len(columns) + 1:
            problems.append(f"line {line} has {len(cells)} cells, {len(columns) + 1} are wanted")
            return
        name = cells.pop(label)
        if not name:
            problems.append(f"line {line} has no label")
            return
        try:
            values[len(labels)] = [float(cell) for cell in cells]
        except ValueError:
            column, cell = next((c, cell) for c, cell in zip(columns, cells, strict=True) if not _is_number(cell))
            what = f"{cell!r:.40} is no number" if cell else "is empty"
            problems.append(f"line {line}, column {column!r}: {what}")
            return
        labels.append(name)
        places.append(f"line {line}")

    for source in (begin, rows):
        for line, cells in source:
            take(line, cells)
            if len(labels) == at_once or len(problems) == at_once:
                yield Rows(values[: len(labels)], labels, places, problems)
                labels, places, problems = [], [], []
    yield Rows(values[: len(labels)], labels, places, problems)


def _cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Give the line number and the cells of each row that is not blank."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
            reader = csv.reader(_lines(file, path))
            for cells in reader:
                stripped = [cell.strip() for cell in cells]
                if any(stripped):
                    yield reader.line_num, stripped
    except csv.Error as error:
        raise DataError(f"{path}, near line {reader.line_num}: {error}. Is it a CSV file?") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    number = 0
    while line := file.readline(_MAX_LINE):
        number += 1
        if not line.endswith(("\n", "\r")):
            if len(line) >= _MAX_LINE:
                raise DataError(f"{path}, line {number} is longer than {_MAX_LINE} characters. Is it a CSV file?")
            if time.time() - path.stat().st_mtime < SETTLED_S and number > 1:
                return
        yield line


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True

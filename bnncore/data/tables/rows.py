"""What every reader of tables gives: blocks of rows, each row with its label, or with what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOCK_BYTES", "Rows", "Table", "label_column", "rows_at_once"]

BLOCK_BYTES = 1 << 20
"""Of the numbers of one block."""


@dataclass(frozen=True)
class Rows:
    """Some rows of a table.

    Attributes:
      values: float64 [m, columns]; where one is not finite the row is broken.
      labels: class names, m of them.
      places: where each row stands in its file, m of them: "line 3".
      problems: what is wrong with rows that are not among these.
    """

    values: NDArray[np.float64]
    labels: list[str]
    places: list[str]
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Table:
    """One file of rows, being read.

    Attributes:
      columns: names of the columns of numbers; empty: they have none.
      input_shape: of one row.
      blocks: the rows, in order; read as they are asked for.
    """

    columns: tuple[str, ...]
    input_shape: tuple[int, ...]
    blocks: Iterator[Rows]


def label_column(columns: list[str]) -> int:
    """Say which column holds the label: that which is called ``label``, else the last."""
    lowered = [name.strip().lower() for name in columns]
    return lowered.index("label") if "label" in lowered else len(columns) - 1


def rows_at_once(num_columns: int) -> int:
    """Say how many rows a block has."""
    return max(1, BLOCK_BYTES // (8 * num_columns))

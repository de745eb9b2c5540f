"""Which classes a model takes for which: a matrix for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["confusion_of", "render_confusion"]

MOST_CLASSES = 10
"""Columns of the matrix; of more classes those with most mistakes are shown, the others together."""

_NAME_WIDTH = 18
_OTHERS = "all others"


def confusion_of(truth: NDArray[np.int32], told: NDArray[np.int32], classes: int) -> NDArray[np.int64]:
    """Count.

    Args:
      truth: int32 [n], the samples' classes.
      told: int32 [n], what the model says.
      classes: how many there are.

    Returns:
      int64 [classes, classes]: rows are the truth, columns what is told.
    """
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (truth, told), 1)
    return counts


def render_confusion(counts: NDArray[np.int64], classes: Sequence[str]) -> str:
    """Write a matrix for people: a row for each class that it is, a column for each that it is taken for."""
    names = [f"{number} {_cut(name)}" for number, name in enumerate(classes)]
    numbers = [str(number) for number in range(len(classes))]
    if len(classes) > MOST_CLASSES:
        counts, shown = _folded(counts)
        names = [names[index] for index in shown] + [_OTHERS]
        numbers = [numbers[index] for index in shown] + ["rest"]
    totals = counts.sum(axis=1)
    hits = 100.0 * np.diagonal(counts) / np.maximum(totals, 1)
    lines = [f"{'it is, taken for':<{_NAME_WIDTH}}" + "".join(f"{number:>5}" for number in numbers) + "   right"]
    for name, row, total, share in zip(names, counts, totals, hits, strict=True):
        right = "  none" if total == 0 else f"{share:4.0f} %"
        # Of the classes that are shown together nobody knows which was taken for which.
        right = "" if name == _OTHERS else right
        cells = "".join(f"{_short(count):>5}" for count in row)
        lines.append(f"{name:<{_NAME_WIDTH}}{cells}  {right}".rstrip())
    return "\n".join(lines)


def _folded(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[int]]:
    """Keep the classes with most mistakes, either way, and add the others up."""
    mistakes = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diagonal(counts)
    worst = np.argsort(-mistakes, kind="stable")[: MOST_CLASSES - 1]
    shown = sorted(int(index) for index in worst)
    place = np.full(len(counts), len(shown))
    place[shown] = np.arange(len(shown))
    folded = np.zeros((len(shown) + 1, len(shown) + 1), np.int64)
    np.add.at(folded, (place[:, None], place[None, :]), counts)
    return folded, shown


def _short(count: int) -> str:
    return "." if count == 0 else str(count) if count < 10_000 else f"{count // 1000}k"


def _cut(name: str) -> str:
    room = _NAME_WIDTH - 4
    printable = "".join(sign if sign.isprintable() else "?" for sign in name)
    return printable if len(printable) <= room else printable[: room - 1] + "…"

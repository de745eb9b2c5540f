"""Finding the files of a table."""

from __future__ import annotations

import os
import time
from pathlib import Path

from bnncore.data.idx import Split
from bnncore.errors import DataError

__all__ = ["SETTLED_S", "TABLE_KINDS", "find_tables", "has_tables", "is_being_written"]

TABLE_KINDS = ("csv", "npz", "parquet")
"""Names of the data sets, and the suffixes of their files."""

SETTLED_S = 2.0
"""A last line without an end, in a CSV file that was written to so lately, is still being written: it is left out."""

_NAMES: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("test", "val", "validation")}


def find_tables(kind: str, root: Path) -> dict[Split, list[Path]] | list[Path]:
    """Find the files of a table below a data folder.

    Returns:
      Those of each split; or all, where no name says to which split they belong.

    Raises:
      DataError: there are none.
    """
    named = {split: [root / f"{name}.{kind}" for name in names] for split, names in _NAMES.items()}
    found: dict[Split, list[Path]]
    found = {split: [path for path in paths if path.is_file()][:1] for split, paths in named.items()}
    if found["train"]:
        return found
    files = sorted(path for path in root.glob(f"*.{kind}") if path.is_file() and not path.name.startswith("."))
    if not files:
        raise DataError(f"no {kind} in {root}: looked for train.{kind} and test.{kind}, or any *.{kind}. Check --data")
    return files


def has_tables(kind: str, root: Path, *, named: bool = False) -> bool:
    """Say whether there are any; ``named``: one that its name says is for training."""
    if named:
        return (root / f"train.{kind}").is_file()
    return any(path.is_file() and not path.name.startswith(".") for path in root.glob(f"*.{kind}"))


def is_being_written(path: Path) -> bool:
    """Say whether a file is a CSV that was written to just now and ends within a line.

    Raises:
      OSError: it cannot be read.
    """
    status = path.stat()
    if path.suffix != ".csv" or not status.st_size or time.time() - status.st_mtime >= SETTLED_S:
        return False
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() not in (b"\n", b"\r")

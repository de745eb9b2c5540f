"""Pictures of one folder in one shape, kept between preparations: each is read once, however often others are added.

A store is a folder with the samples in ``rows-<n>``, to which rows are only ever added, and ``index``: a JSON line for
each picture with its name, size and time of change, and its row or why it cannot be read. Whoever trains holds the rows
open, so that nothing that comes later changes what it trains on. Rows of pictures that went are left in place until
they are more than half; the others are copied over then.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.durable import replace_file

__all__ = ["ImageStore", "opened_store"]

_INDEX = "index"
_COPY_BYTES = 1 << 20
_ENOUGH_DEAD = 64

Stamp = tuple[int, int]
"""Size in bytes, and time of change in nanoseconds."""


class ImageStore:
    """The store while one process prepares; see ``opened_store``.

    Attributes:
      rows: the file of the samples.
    """

    def __init__(self, folder: Path, row_bytes: int) -> None:
        self._folder = folder
        self._row_bytes = row_bytes
        self._known: dict[str, tuple[Stamp, int | str]] = {}
        self._added: list[str] = []
        self._generation = 0
        self._read_index()
        self.rows = folder / f"rows-{self._generation}"
        self._file = open(self.rows, "ab")  # noqa: SIM115 - closed by opened_store
        # Rows that the index does not name, after a power cut, stay: a view may. Only what is cut in a row goes.
        self._count = self._file.tell() // row_bytes
        self._file.truncate(self._count * row_bytes)

    def _read_index(self) -> None:
        try:
            lines = (self._folder / _INDEX).read_bytes().split(b"\n")
        except FileNotFoundError:
            return
        for line in filter(None, lines):
            try:
                entry = json.loads(line)
            except ValueError:  # cut by a power cut: that picture is read again
                continue
            if isinstance(entry, int):
                self._generation = entry
            else:
                name, size, changed_ns, row = entry
                self._known[name] = ((size, changed_ns), row)
        rows = self._folder / f"rows-{self._generation}"
        have = rows.stat().st_size // self._row_bytes if rows.exists() else 0
        self._known = {
            name: entry for name, entry in self._known.items() if isinstance(entry[1], str) or entry[1] < have
        }

    def find(self, name: str, stamp: Stamp) -> int | str | None:
        """Give a picture's row, or why it cannot be read; None: it is not known, or not as it is now."""
        known = self._known.get(name)
        return known[1] if known is not None and known[0] == stamp else None

    def unknown(self, pictures: Iterable[tuple[str, Stamp | None]]) -> int:
        """Count those among some pictures, each with its stamp, that ``find`` does not know."""
        return sum(stamp is not None and self.find(name, stamp) is None for name, stamp in pictures)

    def add(self, name: str, stamp: Stamp, sample: NDArray[np.uint8] | str) -> int | str:
        """Add a picture's sample, uint8 [row_bytes], or why it has none; returns what ``find`` will."""
        found: int | str
        if isinstance(sample, str):
            found = sample
        else:
            self._file.write(sample.data)
            found = self._count
            self._count += 1
        self._known[name] = (stamp, found)
        self._added.append(json.dumps([name, *stamp, found]))
        return found

    def flush(self) -> None:
        """Put on the disk what was added: first the rows, then what names them."""
        if not self._added:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        is_new = not (self._folder / _INDEX).exists()
        with open(self._folder / _INDEX, "ab") as index:
            # A line that a power cut has left unfinished ends here, whatever it was.
            lines = [str(self._generation)] * is_new + self._added
            index.write(("\n" * (not is_new) + "\n".join(lines) + "\n").encode())
            index.flush()
            os.fsync(index.fileno())
        self._added = []

    def drop_dead(self, alive: set[str]) -> bool:
        """Copy the rows of these pictures to a file of their own, where the others are more; says whether it did."""
        live = {name: entry for name, entry in self._known.items() if name in alive}
        num_rows = sum(isinstance(row, int) for _, row in live.values())
        if self._count - num_rows < max(_ENOUGH_DEAD, num_rows):
            return False
        self.flush()
        self._generation += 1
        old, self.rows = self.rows, self._folder / f"rows-{self._generation}"
        lines: list[Any] = [self._generation]
        with open(old, "rb") as source, replace_file(self.rows) as target:
            for name, (stamp, row) in live.items():
                if isinstance(row, int):
                    source.seek(row * self._row_bytes)
                    row = target.tell() // self._row_bytes
                    target.write(source.read(self._row_bytes))
                lines.append([name, *stamp, row])
                self._known[name] = (stamp, row)
        with replace_file(self._folder / _INDEX) as index:
            index.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        self._known = {name: self._known[name] for name in live}
        self._count = num_rows
        self._file.close()
        self._file = open(self.rows, "ab")  # noqa: SIM115 - closed by opened_store
        old.unlink()
        return True

    def close(self) -> None:
        """Put on the disk what was added, and close the rows."""
        try:
            self.flush()
        finally:
            self._file.close()


@contextlib.contextmanager
def opened_store(folder: Path, row_bytes: int) -> Iterator[ImageStore]:
    """Open a store for one process at a time; others wait.

    Args:
      folder: made when it is missing.
      row_bytes: of one sample.

    Raises:
      OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.closing(ImageStore(folder, row_bytes)) as store:
            yield store

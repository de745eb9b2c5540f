"""A file of lines that only grows, each bound to the one before it: whether it is as it was written can be seen.

A line is a JSON object with ``line``, its number from 1, and ``previous``, the SHA-256 of the line before it (of the
first: ``GENESIS``). So whoever changes, removes, inserts or moves a line breaks the line after it. The last line has
none after it: its number and digest stand in a second file, the *head*, written after it. A line that a power cut tore
was never reported as written: the next one closes it off, and names the digest of what is left of it under ``torn``.

What this cannot show: somebody who may write both files can write both anew, from any line on. Against that an owner
notes the head's digest elsewhere from time to time: it must be the digest of some line for ever.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bnncore.durable import WRITTEN, replace_file, sync_folder
from edge_client.records import as_record, read_json

__all__ = ["GENESIS", "Chain", "Verdict"]

GENESIS = hashlib.sha256(b"bitfleet chain 1").hexdigest()
"""``previous`` of the first line."""

_NO_DIGEST = "0" * 64
"""``previous`` of a line that was written when the head was gone: it follows nothing."""


@dataclass(frozen=True)
class _Head:
    """Where a chain ends."""

    line: int = 0
    digest: str = GENESIS


@dataclass
class Verdict:
    """What a look at a whole chain found."""

    lines: int = 0
    """The last line's number."""
    head: str = GENESIS
    """Its digest."""
    problems: list[str] = field(default_factory=list)
    """What is not as it was written, each with its line of the file; empty: nothing."""
    notes: list[str] = field(default_factory=list)
    """What power cuts left; no sign of tampering."""


@dataclass(frozen=True)
class _Line:
    number: int
    """In the file, from 1."""
    digest: str
    record: dict[str, Any] | None
    """None: it is no JSON object."""

    @property
    def place(self) -> tuple[int, str] | None:
        """Its own number and the digest of the line before it, where it says so."""
        record = self.record or {}
        number, previous = record.get("line"), record.get("previous")
        return (number, previous) if type(number) is int and isinstance(previous, str) else None


class Chain:
    """One chained file and its head beside it. One process appends; any number may read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.head_path = path.with_suffix(".head")
        self._last: _Head | None = None
        self._kept_head: _Head | None = None
        self._torn: list[str] = []

    def append(self, record: dict[str, Any]) -> None:
        """Add a line; it is on the disk when this returns.

        A file that is not as it was written is gone on with too, from the line that the head names: what was done to
        it stays visible.

        Raises:
          OSError: the line, or its head, could not be made durable.
        """
        if self._last is None:
            self._last = self._resume()
        last, self._last = self._last, None  # looked up again, should this fail
        if last not in (self._kept_head, _Head()):
            self._keep_head(last)
        bound = {"line": last.line + 1, "previous": last.digest, **({"torn": self._torn} if self._torn else {})}
        line = json.dumps({**bound, **record}).encode()
        is_new = not self.path.exists()
        with open(self.path, "ab+") as file:
            size = os.fstat(file.fileno()).st_size
            ends_a_line = size == 0 or os.pread(file.fileno(), 1, size - 1) == b"\n"
            file.write((b"" if ends_a_line else b"\n") + line + b"\n")
            file.flush()
            WRITTEN.add(len(line))
            os.fsync(file.fileno())
        if is_new:
            sync_folder(self.path.parent)
        last = _Head(last.line + 1, _digest(line))
        self._keep_head(last)
        self._last, self._torn = last, []

    def records(self) -> Iterator[dict[str, Any]]:
        """Read what was appended, oldest first; what cannot be read is passed over."""
        for line in self._lines():
            if line.record is not None:
                yield line.record

    def verify(self, noted: str | None = None) -> Verdict:
        """Check every line against the next, and the last against the head.

        Args:
          noted: a digest of a head that was noted earlier; it must be that of a line still.
        """
        look = _Look()
        is_noted = noted in (None, GENESIS)
        for line in self._lines():
            look.take(line)
            is_noted = is_noted or line.digest == noted
        look.end(self._head(), self.head_path.name)
        if not is_noted:
            look.verdict.problems.append(
                f"no line has the digest {noted} that was noted: lines were removed or written anew"
            )
        return look.verdict

    def _resume(self) -> _Head:
        """Find where to go on: the number and digest of the last line."""
        look = _Look()
        for line in self._lines():
            look.take(line)
        self._kept_head = head = self._head()
        unlinked = [line.digest for line in look.unlinked]
        if look.end(head, self.head_path.name):
            self._torn = unlinked
            return look.last
        self._torn = []  # nobody vouches for what stands at the end
        return head or _Head(look.last.line, _NO_DIGEST)

    def _keep_head(self, head: _Head) -> None:
        with replace_file(self.head_path) as file:
            file.write(json.dumps({"line": head.line, "digest": head.digest}).encode())
        self._kept_head = head

    def _head(self) -> _Head | None:
        try:
            return as_record(_Head, read_json(self.head_path.read_bytes()))
        except (OSError, ValueError):
            return None

    def _lines(self) -> Iterator[_Line]:
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            for number, text in enumerate(file, 1):
                try:
                    value = read_json(text)
                except ValueError:
                    value = None
                yield _Line(number, _digest(text.removesuffix(b"\n")), value if isinstance(value, dict) else None)


class _Look:
    """One look at a file, line by line.

    Attributes:
      verdict: what was found so far.
      unlinked: lines since the last one with a place in the chain, which have none.
    """

    def __init__(self) -> None:
        self.verdict = Verdict()
        self.unlinked: list[_Line] = []
        self._before = ""
        self._number = 0

    @property
    def last(self) -> _Head:
        """The last line that has a place in the chain."""
        return _Head(self.verdict.lines, self.verdict.head)

    def take(self, line: _Line) -> None:
        """Look at the next line."""
        self._number = line.number
        if line.record is None or line.place is None:
            self.unlinked.append(line)
            return
        number, previous = line.place
        verdict = self.verdict
        fits = line.place == (verdict.lines + 1, verdict.head)
        if fits and line.record.get("torn", []) == [torn.digest for torn in self.unlinked]:
            self._note_torn()
        elif self.unlinked:
            self._blame_unlinked()
        elif fits:
            verdict.problems.append(f"what a power cut had left before line {line.number} was removed or changed")
        else:
            verdict.problems.append(_break(line.number, number - verdict.lines - 1))
        self.unlinked.clear()
        self._before, verdict.lines, verdict.head = previous, number, line.digest

    def end(self, head: _Head | None, name: str) -> bool:
        """Check the file's end against the chain's head.

        Args:
          head: what is kept beside the file.
          name: of the file that it is kept in.

        Returns:
          Whether the file ends where the head says.
        """
        last, problems = self.last, self.verdict.problems
        is_behind = (head or _Head()) == _Head(last.line - 1, self._before)
        if is_behind:
            self.verdict.notes.append(f"the power went between the last line and {name}")
        if is_behind or (head or _Head()) == last:
            self._note_torn()
            return True
        self._blame_unlinked()
        if head is None:
            problems.append(f"{name} is missing or cannot be read, so lines may be cut off at the end")
        elif head.line > last.line:
            problems.append(
                f"the last {head.line - last.line} of {head.line} lines are cut off or changed, says {name}"
            )
        elif head.line == last.line:
            problems.append(f"line {self._number} was changed: {name} has another digest of it")
        else:
            problems.append(f"{name} ends at line {head.line}, the file at {last.line}: one of them was replaced")
        return False

    def _note_torn(self) -> None:
        for line in self.unlinked:
            self.verdict.notes.append(f"line {line.number} was torn by a power cut before it counted")

    def _blame_unlinked(self) -> None:
        for line in self.unlinked:
            self.verdict.problems.append(
                f"line {line.number} cannot be read: it was changed or inserted, or the disk has damaged it"
            )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _break(at: int, skipped: int) -> str:
    if skipped > 0:
        return f"{skipped} lines before line {at} were removed"
    if skipped < 0:
        return f"line {at} was inserted, repeated or moved"
    return f"what stands before line {at} was changed after that was written"

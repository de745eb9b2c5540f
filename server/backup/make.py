"""Makes a backup of a coordinator, which may be running: a moment of its database, and the payloads of that moment."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import bnncore
from bnncore.errors import ConfigurationError
from server.backup.layout import DATABASE, FORMAT, HEAD, SUMS, Head
from server.backup.payloads import Held, held_payloads
from server.settings import Settings
from server.storage.rows import Row, read_database
from server.storage.state_folder import BLOBS_FOLDER, IDENTITY_FOLDER


def make_backup(settings: Settings, output: BinaryIO, progress: Callable[[int, int], None] | None = None) -> Head:
    """Write a backup of a coordinator, or of all that share a database, whether they run or not.

    Payloads that are deleted meanwhile are held, so those of the moment are there however long the copying takes.

    Args:
      settings: which say where the state folder, the database, the payloads and the identity are.
      output: a file or a pipe.
      progress: told the payload bytes that were written, and how many there will be.

    Returns:
      What the backup says of itself; it names payloads that were damaged and are not in it.

    Raises:
      ConfigurationError: there is no such folder or store, or the database cannot be read.
      OSError: the disk or the object store refused.
    """
    if settings.blobs:  # nothing but a place to work is needed
        settings.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not settings.state.is_dir():
        raise ConfigurationError(f"there is no state folder {settings.state}")
    with (
        tempfile.TemporaryDirectory(prefix="backup-", dir=settings.state) as name,
        held_payloads(settings, Path(name)) as held,
    ):
        database = Path(name)
        schema, tables, lost = _take(database, held, settings.database_url)
        sizes = {path.name: path.stat().st_size for path in sorted(held.folder.iterdir())}
        damaged = sorted(lost | {digest for digest in sizes if _digest(held.folder / digest) != digest})
        whole = {digest: size for digest, size in sizes.items() if digest not in damaged}
        identity = _identity(settings)
        head = Head(
            format=FORMAT,
            bitfleet=bnncore.__version__,
            made_at=time.time(),
            schema=schema,
            tables=tables,
            payloads=len(whole),
            payload_bytes=sum(whole.values()),
            holds_identity=bool(identity),
            damaged=damaged,
        )
        with tarfile.open(fileobj=output, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            writer = _Writer(archive)
            writer.add_bytes(HEAD, json.dumps(asdict(head), indent=2).encode() + b"\n")
            for table in tables:
                writer.add(f"{DATABASE}/{table}.jsonl", database / table)
            for path in identity:
                writer.add(f"{IDENTITY_FOLDER}/{path.name}", path)
            written = 0
            for digest, size in whole.items():
                writer.add(f"{BLOBS_FOLDER}/{digest[:2]}/{digest}", held.folder / digest, digest)
                written += size
                if progress is not None:
                    progress(written, head.payload_bytes)
            writer.finish()
        return head


def _take(folder: Path, held: Held, database_url: str) -> tuple[str, dict[str, int], set[str]]:
    """Take a moment of the database and hold its payloads, and no others.

    Returns:
      The database's schema, the rows of each table, and payloads that are named and not there.
    """
    with read_database(database_url) as reading:
        named = reading.payloads()
        lost = held.hold(named)
        held.close()
        for path in held.folder.iterdir():
            if path.name not in named:
                path.unlink()
        tables = {
            table: _write_rows(folder / table, columns, reading.rows(table))
            for table, columns in reading.tables.items()
        }
        return reading.schema, tables, lost


def _identity(settings: Settings) -> list[Path]:
    """Return this coordinator's own files, and the authority that it shares with others."""
    folders = [settings.state / IDENTITY_FOLDER, *([] if settings.identity is None else [settings.identity])]
    named = {path.name: path for folder in folders for path in folder.glob("*.*") if path.is_file()}
    return [named[name] for name in sorted(named)]


def _write_rows(path: Path, columns: list[str], rows: Iterator[Row]) -> int:
    """Write a table; returns how many rows it has."""
    count = 0
    with path.open("w") as file:
        file.write(json.dumps(columns) + "\n")
        for row in rows:
            file.write(json.dumps(row) + "\n")
            count += 1
    return count


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Writer:
    """Puts files into an archive, and their digests at its end."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._sums: list[str] = []

    def add(self, name: str, path: Path, digest: str | None = None) -> None:
        """Add a file; ``digest`` is its SHA-256 where that is known."""
        self._sums.append(f"{digest or _digest(path)}  {name}\n")
        with path.open("rb") as file:
            self._put(name, path.stat().st_size, file)

    def add_bytes(self, name: str, data: bytes) -> None:
        """Add a file of these bytes."""
        self._put(name, len(data), io.BytesIO(data))
        self._sums.append(f"{hashlib.sha256(data).hexdigest()}  {name}\n")

    def finish(self) -> None:
        """Add what says that nothing is missing."""
        data = "".join(self._sums).encode()
        self._put(SUMS, len(data), io.BytesIO(data))

    def _put(self, name: str, size: int, file: BinaryIO) -> None:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode, entry.mtime = size, 0o600, int(time.time())
        self._archive.addfile(entry, file)

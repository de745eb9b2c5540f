"""Puts a backup back: into an empty state folder and an empty database, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import IO, Any, BinaryIO

from bnncore.errors import ConfigurationError
from server.backup.layout import DATABASE, FORMAT, HEAD, SUMS, Head, is_member
from server.backup.payloads import send_payloads
from server.settings import Settings
from server.storage.rows import Row, write_database
from server.storage.state_folder import AUTHORITY_FILE, BLOBS_FOLDER, IDENTITY_FOLDER, LOCK_FILE, RESTORING, owned

_PIECE = 1 << 20


def restore_backup(file: BinaryIO, settings: Settings, progress: Callable[[int], object] | None = None) -> Head:
    """Put a backup back. What was written down after it was made is not there any more.

    Everything is unpacked and checked first. Then payloads go into the object store, if one is named, and the database
    is filled; then the rest takes its place. What was in the object store stays there.

    Args:
      file: the backup, or a pipe.
      settings: the state folder to be, empty or missing; the database to be, an SQLite file in the state folder or an
        empty one anywhere; where payloads and the fleet's authority are to be.
      progress: told how many bytes were unpacked, piece by piece.

    Returns:
      What the backup says of itself.

    Raises:
      ConfigurationError: it is no backup, or cut off, damaged, or of a newer version; the state folder or the database
        is not empty, or the object store cannot be used.
      OSError: the disk or the object store refused.
    """
    state = settings.state
    with owned(state):
        if _content(state):
            raise ConfigurationError(f"--state {state} must be empty to restore to; choose another folder")
        if settings.identity is not None:
            settings.identity.mkdir(mode=0o700, parents=True, exist_ok=True)
            if (settings.identity / AUTHORITY_FILE).exists():
                raise ConfigurationError(
                    f"--identity {settings.identity} has an authority already: remove it, or choose another folder"
                )
        work = state / RESTORING
        work.mkdir()
        try:
            head = _unpack(file, work, progress or (lambda num_bytes: None))
            if settings.blobs:
                send_payloads(settings, (work / BLOBS_FOLDER).glob("*/*"))
                shutil.rmtree(work / BLOBS_FOLDER)
            write_database(settings.database_url, head.schema, _tables(work / DATABASE, head))
            _share_authority(work / IDENTITY_FOLDER, settings.identity)
            for name in (IDENTITY_FOLDER, BLOBS_FOLDER):
                if (work / name).exists():
                    os.rename(work / name, state / name)
            os.sync()
        except BaseException:
            for path in _content(state):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            raise
        shutil.rmtree(work)
        os.sync()
        return head


def _share_authority(restored: Path, identity: Path | None) -> None:
    """Move the fleet's authority to where coordinators share it."""
    authority = restored / AUTHORITY_FILE
    if identity is not None and authority.exists():
        shutil.move(authority, identity / AUTHORITY_FILE)


def _content(state: Path) -> list[Path]:
    return [path for path in state.iterdir() if path.name != LOCK_FILE]


def _unpack(file: BinaryIO, work: Path, progress: Callable[[int], object]) -> Head:
    """Unpack a backup and check all of it."""
    for name in (DATABASE, IDENTITY_FOLDER, BLOBS_FOLDER):
        (work / name).mkdir(mode=0o700)
    found: dict[str, str] = {}
    with _errors_of_archives(), tarfile.open(fileobj=file, mode="r|") as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isreg() else None
            if content is None or SUMS in found or member.name in found or (not found and member.name != HEAD):
                raise ValueError(f"{member.name!r} does not belong there")
            if member.name != SUMS and not is_member(member.name):
                raise ValueError(f"{member.name!r} is no part of a backup")
            found[member.name] = _write(content, work / member.name, progress)
            if member.name == HEAD:
                _read_head(work / HEAD)  # that of a newer version may have parts that are not known here
        if found.pop(SUMS, None) is None:
            raise ValueError("its end is missing")
        said = {name: digest for digest, name in (line.split("  ") for line in (work / SUMS).read_text().splitlines())}
        head = _read_head(work / HEAD)
        wanted = said.keys() | {f"{DATABASE}/{table}.jsonl" for table in head.tables}
        wrong = {name for name in wanted | found.keys() if name not in said or said[name] != found.get(name)}
        if wrong:
            raise ValueError(f"{len(wrong)} of its files are missing, damaged or not listed, such as {min(wrong)}")
        if any(name.startswith(BLOBS_FOLDER) and not name.endswith(digest) for name, digest in found.items()):
            raise ValueError("a payload is not what its name says")
    return head


def _read_head(path: Path) -> Head:
    said: dict[str, Any] = json.loads(path.read_text())
    if said["format"] != FORMAT:
        raise ConfigurationError(
            f"the backup has format {said['format']} (bitfleet {said.get('bitfleet')}), this version reads {FORMAT}"
        )
    return Head(**{field.name: said[field.name] for field in fields(Head)})


def _write(content: IO[bytes], path: Path, progress: Callable[[int], object]) -> str:
    """Write a file that only its owner may read; returns its digest."""
    digest = hashlib.sha256()
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        while piece := content.read(_PIECE):
            file.write(piece)
            digest.update(piece)
            progress(len(piece))
    return digest.hexdigest()


def _tables(folder: Path, head: Head) -> Iterator[tuple[str, list[str], Iterator[Row]]]:
    for table in head.tables:
        with (folder / f"{table}.jsonl").open() as lines:
            columns: list[str] = json.loads(next(lines))
            yield table, columns, (json.loads(line) for line in lines)


@contextlib.contextmanager
def _errors_of_archives() -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"this is no whole backup: {error}") from error

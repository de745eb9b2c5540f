"""Payloads that are deleted while a backup is made are there for it, whoever is faster; after it they are gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from server.storage.blobs import LocalBlobs
from server.storage.holding import holding

HOLDER = """\
import sys, time
from pathlib import Path
from server.storage.holding import holding
with holding(Path(sys.argv[1])):
    print("holds", flush=True)
    sys.stdin.read()
"""


def test_what_is_deleted_meanwhile_is_held_by_every_backup(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    kept, deleted, late = (blobs.put(word) for word in (b"kept", b"deleted", b"late"))

    with holding(tmp_path) as first, holding(tmp_path) as second:
        assert first.hold({deleted}) == set()
        blobs.delete(deleted)
        blobs.put(b"deleted")
        blobs.delete(deleted)
        for held in (first, second):
            assert held.hold({kept, deleted, "0" * 64}) == {"0" * 64}
            held.close()
        blobs.delete(late)
        for held in (first, second):
            assert {path.name: path.read_bytes() for path in held.folder.iterdir()} == {
                kept: b"kept",
                deleted: b"deleted",
            }

    assert blobs.digests() == {kept}
    assert not list((tmp_path / "backups").iterdir())


def test_a_backup_that_was_killed_holds_nothing_any_more(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    held, not_held = blobs.put(b"held"), blobs.put(b"not held")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        blobs.delete(held)
        holder.kill()
    (folder,) = (tmp_path / "backups").iterdir()
    assert (folder / held).read_bytes() == b"held"

    blobs.delete(not_held)
    with holding(tmp_path) as living:  # is none of those that a start removes
        assert not (folder / not_held).exists()
        blobs.remove_leftovers()
        assert list((tmp_path / "backups").iterdir()) == [living.folder]

"""A file is complete or absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from bnncore.durable import replace_file


def test_the_new_content_appears_at_the_end_of_the_block(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"old")

    with replace_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"

    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_exception_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"old")

    with pytest.raises(RuntimeError), replace_file(path) as file:
        file.write(b"half")
        raise RuntimeError

    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_gets_ordinary_permissions(tmp_path: Path) -> None:
    with replace_file(tmp_path / "ours") as file:
        file.write(b"")
    (tmp_path / "theirs").write_bytes(b"")

    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode

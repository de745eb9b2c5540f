"""Fetching, against a real HTTP server on the loopback interface."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bnncore.data.download import download_cifar10, download_mnist
from bnncore.errors import DataError
from tests.bnncore.file_host import serve_folder

CONTENT = bytes(range(256)) * 1000
GOOD = {"images.gz": hashlib.sha256(CONTENT).hexdigest()}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[str]:
    """A host that has ``images.gz`` in ``/good`` and a damaged one in ``/bad``."""
    for folder, content in [("good", CONTENT), ("bad", CONTENT[:-1])]:
        (tmp_path / "host" / folder).mkdir(parents=True)
        (tmp_path / "host" / folder / "images.gz").write_bytes(content)
    with serve_folder(tmp_path / "host") as url:
        yield url


def test_the_first_host_with_the_right_file_serves(tmp_path: Path, host: str) -> None:
    download_mnist(tmp_path / "data", urls=[host + "absent/", host + "bad/", host + "good/"], sha256=GOOD)

    assert (tmp_path / "data" / "mnist" / "images.gz").read_bytes() == CONTENT


def test_a_damaged_file_is_not_kept(tmp_path: Path, host: str) -> None:
    with pytest.raises(DataError) as caught:
        download_mnist(tmp_path / "data", urls=[host + "absent/", host + "bad/"], sha256=GOOD)

    assert "404" in str(caught.value)
    assert GOOD["images.gz"] in str(caught.value)
    assert list((tmp_path / "data" / "mnist").iterdir()) == []


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "images.gz").write_bytes(b"mine")

    download_mnist(tmp_path, urls=["http://127.0.0.1:9/"], sha256=GOOD)

    assert (tmp_path / "mnist" / "images.gz").read_bytes() == b"mine"


def test_a_host_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/images\.gz"):
        download_mnist(tmp_path, urls=["http://127.0.0.1:9/"], sha256=GOOD)


def put_archive(folder: Path, files: dict[str, bytes]) -> str:
    """Write an archive as CIFAR-10's publisher has it; gives its SHA-256."""
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return hashlib.sha256((folder / "cifar-10-python.tar.gz").read_bytes()).hexdigest()


BATCH = {"test_batch": hashlib.md5(CONTENT).hexdigest()}


def test_an_archive_is_unpacked_checked_and_deleted(tmp_path: Path, host: str) -> None:
    files = {"cifar-10-batches-py/test_batch": CONTENT, "cifar-10-batches-py/readme.html": b"", "../out": b"no"}
    checksum = put_archive(tmp_path / "host" / "good", files)

    download_cifar10(tmp_path / "data", urls=[host + "bad/", host + "good/"], sha256=checksum, md5=BATCH)

    assert (tmp_path / "data/cifar10/cifar-10-batches-py/test_batch").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and "data" in path.parts] == ["test_batch"]
    assert not (tmp_path / "out").exists()


def test_an_archive_with_another_checksum_is_not_kept(tmp_path: Path, host: str) -> None:
    put_archive(tmp_path / "host" / "good", {"cifar-10-batches-py/test_batch": CONTENT})

    with pytest.raises(DataError, match="expected " + "0" * 64):
        download_cifar10(tmp_path / "data", urls=[host + "good/"], sha256="0" * 64, md5=BATCH)

    assert [path for path in (tmp_path / "data").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"cifar-10-batches-py/test_batch": CONTENT[1:]}, f"has MD5 .*expected {BATCH['test_batch']}"),
        ({"cifar-10-batches-py/readme.html": b""}, "lacks test_batch"),
    ],
)
def test_an_archive_with_the_wrong_files_is_refused(
    tmp_path: Path, host: str, files: dict[str, bytes], message: str
) -> None:
    checksum = put_archive(tmp_path / "host" / "good", files)

    with pytest.raises(DataError, match=message):
        download_cifar10(tmp_path / "data", urls=[host + "good/"], sha256=checksum, md5=BATCH)

    assert list(tmp_path.rglob("data/**/test_batch")) == []


def test_photographs_that_are_there_are_not_fetched_again(tmp_path: Path) -> None:
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch.xz", "batches.meta"]:
        (tmp_path / name).touch()

    download_cifar10(tmp_path, urls=["http://127.0.0.1:9/"])

    assert not (tmp_path / "cifar10").exists()

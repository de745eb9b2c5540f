"""Fetching HAR, from a host on the loopback interface that packs it as the publisher does."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bnncore.data.har import FOLDER_NAME, har_members, open_har
from bnncore.data.har_download import digest_examples, download_har
from bnncore.data.idx import Split
from bnncore.errors import DataError
from tests.bnncore.file_host import serve_folder

ARCHIVE = "human+activity+recognition+using+smartphones.zip"
NOWHERE = "http://127.0.0.1:9/"
COUNT = 12


@pytest.fixture(autouse=True)
def no_data_folder(own_folders: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data folder from outside, and a cache of the test's own."""
    monkeypatch.delenv("BITFLEET_DATA", raising=False)


def published() -> dict[str, bytes]:
    """A dozen windows a split, as the publisher writes them, and a file that nobody needs."""
    rng = np.random.default_rng(0)
    files = {"README.txt": b"notes \x96 of the publisher's"}
    for member in har_members():
        if member == "activity_labels.txt":
            files[member] = b"1 WALKING\n2 SITTING\n"
        elif "Inertial" in member:
            rows = ("".join(f"{value: .7e} " for value in row) for row in rng.normal(size=(COUNT, 128)))
            files[member] = "\n".join(rows).encode()
        else:
            files[member] = "".join(f"{n}\n" for n in rng.integers(1, 3, COUNT)).encode()
    return files


def zipped(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def packed(files: dict[str, bytes], *, is_nested: bool = True) -> bytes:
    inner = zipped({f"{FOLDER_NAME}/{name}": content for name, content in files.items()})
    return zipped({f"{FOLDER_NAME}.names": b"", f"{FOLDER_NAME}.zip": inner}) if is_nested else inner


def digests_of(folder: Path) -> dict[Split, str]:
    """What the examples of ``published`` come to, read from plain files."""
    for name, content in published().items():
        path = folder / FOLDER_NAME / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    found: dict[Split, str] = {}
    for split in ("train", "test"):
        with open_har(folder, split=split) as examples:
            found[split] = digest_examples(examples)
    return found


@pytest.fixture
def host(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "host").mkdir()
    with serve_folder(tmp_path / "host") as url:
        yield url


def files_below(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize("is_nested", [True, False], ids=["an archive in an archive", "the archive itself"])
def test_what_is_trained_on_is_taken_and_ready(tmp_path: Path, host: str, is_nested: bool) -> None:
    (tmp_path / "host" / ARCHIVE).write_bytes(packed(published(), is_nested=is_nested))
    digests = digests_of(tmp_path / "plain")

    download_har(tmp_path / "data", urls=[NOWHERE, host], digests=digests)

    assert files_below(tmp_path / "data") == sorted(f"har/{FOLDER_NAME}/{member}" for member in har_members())
    with open_har(tmp_path / "data", split="test") as examples:
        assert (examples.num_examples, examples.classes) == (COUNT, ("WALKING", "SITTING"))
    download_har(tmp_path / "data", urls=[NOWHERE])  # it is there


def test_an_archive_that_was_copied_there_is_taken_and_a_wrong_one_left(tmp_path: Path) -> None:
    (tmp_path / "data" / "har").mkdir(parents=True)
    copied = tmp_path / "data" / "har" / ARCHIVE
    copied.write_bytes(packed(published()))

    with pytest.raises(DataError, match="has other examples"):
        download_har(tmp_path / "data", urls=[NOWHERE])
    assert files_below(tmp_path / "data") == [f"har/{ARCHIVE}"]

    download_har(tmp_path / "data", urls=[NOWHERE], digests=digests_of(tmp_path / "plain"))
    assert f"har/{ARCHIVE}" not in files_below(tmp_path / "data")


def test_files_that_are_there_are_not_touched(tmp_path: Path, host: str) -> None:
    (tmp_path / "host" / ARCHIVE).write_bytes(packed(published()))
    own = tmp_path / "data" / "har" / FOLDER_NAME / "train"
    own.mkdir(parents=True)
    (own / "y_train.txt").write_bytes(b"1\n")

    with pytest.raises(DataError, match=r"is there, but incomplete. Move it away"):
        download_har(tmp_path / "data", urls=[host])

    assert (own / "y_train.txt").read_bytes() == b"1\n"


def test_other_examples_are_not_kept(tmp_path: Path, host: str) -> None:
    (tmp_path / "host" / ARCHIVE).write_bytes(packed(published()))
    digests = digests_of(tmp_path / "plain") | {"test": "0" * 64}

    with pytest.raises(DataError, match=r"has other examples .test. than the published ones: digest .*, expected 000"):
        download_har(tmp_path / "data", urls=[host], digests=digests)
    with pytest.raises(DataError, match=r"has other examples .train. than the published ones"):
        download_har(tmp_path / "data", urls=[host])

    assert files_below(tmp_path / "data") == []


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (b"<html>moved</html>", "cannot be unpacked: File is not a zip file"),
        (packed(published())[:-5000], "cannot be unpacked"),
        (packed({"README.txt": b""}), f"the archive lacks {FOLDER_NAME}/activity_labels.txt, "),
        (packed(published() | {"activity_labels.txt": b"walking"}), "must have a number from 1 on and a name"),
        (zipped({f"{FOLDER_NAME}.zip": b"no archive"}), "cannot be unpacked"),
    ],
    ids=["no archive", "cut off", "empty", "with a wrong file", "with no archive in it"],
)
def test_a_wrong_archive_is_refused_and_not_kept(tmp_path: Path, host: str, archive: bytes, message: str) -> None:
    (tmp_path / "host" / ARCHIVE).write_bytes(archive)

    with pytest.raises(DataError, match=message):
        download_har(tmp_path / "data", urls=[host])

    assert files_below(tmp_path / "data") == []


def test_the_host_that_has_none_is_named(tmp_path: Path, host: str) -> None:
    with pytest.raises(DataError, match=r"smartphones\.zip could not be fetched into .*404"):
        download_har(tmp_path / "data", urls=[host])


def test_the_published_examples_are_known(data_root: Path) -> None:
    if not (data_root / "har").is_dir():
        pytest.skip(f"no HAR: {data_root / 'har'} is not a folder")

    download_har(data_root, urls=[NOWHERE])  # nothing to fetch

    from bnncore.data.har_download import _DIGESTS

    for split, digest in _DIGESTS.items():
        with open_har(data_root, split=split) as examples:
            assert digest_examples(examples) == digest

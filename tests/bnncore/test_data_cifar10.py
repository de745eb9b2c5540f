"""CIFAR-10: the publisher's files, found, checked, prepared by another process, and read."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnncore.data import Split, open_dataset, write_idx
from bnncore.data.cifar10 import prepare_cifar10, read_batch
from bnncore.data.pickles import read_pickle
from bnncore.data.unpacking import unpacked
from bnncore.errors import DataError
from tests.bnncore.cli_runs import fail, run_json

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 3072), np.uint8)


@pytest.fixture(autouse=True)
def cache() -> Path:
    """The test's own cache folder."""
    folder = Path(os.environ["BITFLEET_CACHE"])
    folder.mkdir()
    return folder


@pytest.fixture
def files(data_root: Path) -> Path:
    """The folder of the real files."""
    folder = data_root / "cifar10" / "cifar-10-batches-py"
    if not folder.is_dir():
        pytest.skip(f"no CIFAR-10: {folder} is not a folder")
    return folder


@pytest.fixture
def test_split(files: Path, tmp_path: Path) -> Path:
    """A data folder with a copy of the real test split."""
    copy = tmp_path / "cifar-10-batches-py"
    copy.mkdir()
    for name in ("test_batch.xz", "batches.meta"):
        shutil.copy(files / name, copy)
    return tmp_path


def batch_pickle(
    planes: bytes, *, shape: str = "(I4\nI3072\nt", kind: str = "u1", labels: str = "(lI9\naI0\naI3\naI1\na"
) -> bytes:
    """Write a batch by hand, with the opcodes of protocol 0 and binary strings, as the publisher's files have them."""
    data = b"T" + len(planes).to_bytes(4, "little") + planes
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n" + shape.encode() + b"cnumpy\ndtype\n(S'" + kind.encode() + b"'\nI0\nI1\ntR"
        b"(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\n" + data + b"tb"
    )
    return b"(dS'data'\n" + array + b"sS'labels'\n" + labels.encode() + b"s."


def read(path: Path, data: bytes) -> tuple[Any, Any]:
    path.write_bytes(data)
    return read_batch(path, hashlib.md5(data).hexdigest(), 10)


def test_the_real_test_split_opens_with_its_classes_and_counts(files: Path, data_root: Path) -> None:
    with open_dataset("cifar10", data_root, split="test") as dataset:
        assert dataset.classes[:3] == ("airplane", "automobile", "bird")
        assert dataset.input_shape == (32, 32, 3)
        assert np.bincount(dataset.labels).tolist() == [1000] * 10
        rows = np.zeros((2, 3072), np.uint8)
        dataset.read(np.array([9_999, 0], np.uint32), rows)

    with lzma.open(files / "test_batch.xz") as packed:
        theirs = pickle.load(packed, encoding="latin1")
    for row, planes in zip(rows, theirs["data"][[9_999, 0]], strict=True):
        assert row.reshape(32, 32, 3).tolist() == planes.reshape(3, 32, 32).transpose(1, 2, 0).tolist()
    assert dataset.labels.tolist() == theirs["labels"]


def test_torchvision_s_unpacked_files_are_read_too_and_prepared_once(test_split: Path, cache: Path) -> None:
    folder = test_split / "cifar-10-batches-py"
    (folder / "test_batch").write_bytes(lzma.decompress((folder / "test_batch.xz").read_bytes()))
    (folder / "test_batch.xz").unlink()

    open_dataset("cifar10", test_split, split="test").close()
    [entry] = cache.iterdir()
    stamps = {path.name: path.stat().st_mtime_ns for path in entry.iterdir()}
    with open_dataset(None, test_split, split="test") as dataset:  # found by itself
        assert dataset.name == "cifar10"

    assert {path.name: path.stat().st_mtime_ns for path in entry.iterdir()} == stamps
    assert list(cache.rglob("*.tmp")) == []


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip_a_bit(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("test_batch.xz", cut, "is cut"),
        ("test_batch.xz", flip_a_bit, "cannot be unpacked|MD5"),
        ("test_batch.xz", lambda data: b"<html>404</html>", "cannot be unpacked"),
        ("test_batch.xz", lambda data: lzma.compress(bytes(10)), "MD5 checksum 40351d58.* unpacked, got"),
        ("test_batch.xz", lambda data: lzma.compress(bytes(1 << 26)), "at most 33554432 bytes"),
        ("batches.meta", flip_a_bit, "MD5 checksum 5ff9c542"),
    ],
)
def test_a_damaged_file_is_named_and_leaves_nothing(
    test_split: Path, cache: Path, name: str, damage: Callable[[bytes], bytes], message: str
) -> None:
    path = test_split / "cifar-10-batches-py" / name
    path.write_bytes(damage(path.read_bytes()))

    with pytest.raises(DataError, match=message) as caught:
        open_dataset("cifar10", test_split, split="test")

    assert str(path) in str(caught.value)
    assert list(cache.rglob("*images*")) == []


def test_missing_files_are_listed(tmp_path: Path) -> None:
    with pytest.raises(DataError) as nothing:
        open_dataset("cifar10", tmp_path, split="train")
    (tmp_path / "data_batch_2").touch()
    (tmp_path / "batches.meta").touch()
    with pytest.raises(DataError) as some:
        open_dataset("cifar10", tmp_path, split="train")

    for part in ("data_batch_1, data_batch_2", "batches.meta", "cifar10/cifar-10-batches-py", "--download"):
        assert part in str(nothing.value)
    assert "lacks data_batch_1, data_batch_3, data_batch_4, data_batch_5)" in str(some.value)


def test_a_batch_is_turned_into_rows_of_pixels(tmp_path: Path) -> None:
    images, labels = read(tmp_path / "batch", batch_pickle(IMAGES.tobytes()))

    assert images.shape == (4, 32, 32, 3)
    assert images[3, 31, 0].tolist() == IMAGES[3].reshape(3, 1024)[:, 31 * 32].tolist()
    assert labels.tolist() == [9, 0, 3, 1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (batch_pickle(IMAGES.tobytes(), shape="(I8\nI1536\nt"), r"uint8 \[n, 3072\] under 'data', got \[8, 1536\]"),
        (batch_pickle(IMAGES.tobytes()[:-1]), "one byte for each number"),
        (batch_pickle(IMAGES.tobytes(), kind="O8"), "must be of uint8"),
        (batch_pickle(IMAGES.tobytes(), labels="(lI9\naI0\naI3\na"), "a label below 10 for each of its 4 images"),
        (batch_pickle(IMAGES.tobytes(), labels="(lI9\naI0\naI3\naI10\na"), "a label below 10"),
        (pickle.dumps({}, 2), "under 'data', got NoneType"),
        (pickle.dumps([1], 2), "must hold a dictionary, got list"),
        (batch_pickle(IMAGES.tobytes())[:200], "cannot be read"),
    ],
)
def test_a_pickle_that_holds_something_else_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path / "batch", data)


class Harmful:
    """Would make a file when it is unpickled by anything that trusts it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_pickle_that_wants_a_foreign_function_runs_nothing(tmp_path: Path, protocol: int) -> None:
    data = pickle.dumps({1: Harmful(tmp_path / "made")}, protocol)

    with pytest.raises(DataError, match=r"it names posix\.mkdir"):
        read_pickle(io.BytesIO(data), tmp_path / "batch")

    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", [b"cnumpy\nfromfile\n", b"cbuiltins\neval\n", b"cnumpy\ndtype.__class__\n"])
def test_a_pickle_gets_no_more_of_numpy_than_an_array_needs(tmp_path: Path, name: bytes) -> None:
    with pytest.raises(DataError, match="it names"):
        read_pickle(io.BytesIO(name + b"."), tmp_path / "batch")


def test_the_array_type_cannot_be_called(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not callable"):
        read_pickle(io.BytesIO(b"cnumpy\nndarray\n((I9\ntt R.".replace(b" ", b"")), tmp_path / "batch")


def test_a_decoder_that_wants_too_much_memory_is_refused(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 29}]
    (tmp_path / "file.xz").write_bytes(lzma.compress(b"small", filters=filters))

    with (
        pytest.raises(DataError, match=r"file\.xz cannot be unpacked: Memory usage limit"),
        unpacked(tmp_path / "file.xz", max_bytes=1 << 20),
    ):
        pass


def test_a_preparation_that_is_killed_says_so(
    test_split: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))

    with pytest.raises(DataError, match=r"ended by signal 9.*free some memory"):
        open_dataset("cifar10", test_split, split="test")


def test_the_network_trains_on_photographs(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A slice of real photographs, in the form that preparation leaves."""
    prepare_cifar10(files.parent.parent, "test", tmp_path / "prepared")
    with open_dataset("idx", tmp_path / "prepared", split="test") as dataset:
        rows = np.zeros((500, 3072), np.uint8)
        dataset.read(np.arange(500, dtype=np.uint32), rows)
        images = rows.reshape(-1, 32, 32, 3)
        parts: dict[Split, slice] = {"train": slice(0, 400), "test": slice(400, 500)}
        for split, part in parts.items():
            write_idx(tmp_path / "few", images[part], dataset.labels[part], split, classes=dataset.classes)

    result = run_json(
        capsys,
        "train",
        "--model",
        "mlp",
        "--data",
        str(tmp_path / "few"),
        "--widths",
        "64",
        "--batch-size",
        "40",
        "--epochs",
        "6",
    )

    assert result["epochs"][-1]["loss"] < result["epochs"][0]["loss"]
    assert result["accuracy"] > 15  # guessing gives 10


def test_the_command_says_what_is_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    message = fail(capsys, 3, "train", "--dataset", "cifar10", "--data", str(tmp_path))

    assert "data_batch_1" in message


@pytest.mark.slow
def test_the_whole_set_is_all_there_and_training_on_it_stays_small(
    files: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--model", "mlp", "--dataset", "cifar10", "--data", str(data_root), "--max-steps", "20"]
    done = subprocess.run(
        [sys.executable, "-m", "bnncore.cli", *command, "--json", "-"], capture_output=True, check=True
    )

    assert json.loads(done.stdout)["rss_peak_bytes"] < 48 << 20
    with open_dataset("cifar10", data_root, split="train") as dataset:  # what the command has prepared
        assert np.bincount(dataset.labels).tolist() == [5000] * 10
        assert dataset.rows.count == 50_000

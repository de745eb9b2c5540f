"""HAR: windows of sensor channels, found, quantised, prepared by another process, and grouped by person."""

from __future__ import annotations

import io
import lzma
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bnncore.data import Dataset, InputRange, open_dataset, write_idx
from bnncore.data.har import HAR_DESCRIPTION
from bnncore.errors import DataError
from tests.bnncore.cli_runs import fail, run_json

CHANNELS = ["total_acc_x", "total_acc_y", "total_acc_z", "body_gyro_x", "body_gyro_y", "body_gyro_z"]
NAMES = ("WALKING", "WALKING_UPSTAIRS", "WALKING_DOWNSTAIRS", "SITTING", "STANDING", "LAYING")
COUNT = 60


@pytest.fixture(autouse=True)
def no_data_folder(own_folders: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data folder from outside."""
    monkeypatch.delenv("BITFLEET_DATA", raising=False)


@pytest.fixture(scope="module")
def signals(data_root: Path) -> dict[str, NDArray[np.float32]]:
    """The real channels of the test split, all rows."""
    folder = data_root / "har" / "UCI HAR Dataset" / "test" / "Inertial Signals"
    if not folder.is_dir():
        pytest.skip(f"no HAR: {folder} is not a folder")
    arrays = {}
    for name in CHANNELS:
        with lzma.open(folder / f"{name}_test.npy.xz") as packed:
            arrays[name] = np.load(packed)
    return arrays


def npy_xz(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return lzma.compress(file.getvalue(), preset=0)


def text(array: NDArray[Any]) -> bytes:
    """Write as the publisher does: `` 1.0128170e+000`` and so on; nine digits keep a float32."""
    return "".join("".join(f"{value: .8e} " for value in row) + "\n" for row in array).encode()


def write_slice(root: Path, data_root: Path, signals: dict[str, NDArray[np.float32]], *, as_text: bool) -> Path:
    """Write every 49th window of the real test split, as both splits, into ``root``; gives the folder."""
    source, folder = data_root / "har" / "UCI HAR Dataset", root / "UCI HAR Dataset"
    for split in ("train", "test"):
        (folder / split / "Inertial Signals").mkdir(parents=True)
        for name, array in signals.items():
            path = folder / split / "Inertial Signals" / f"{name}_{split}"
            some = array[::49][:COUNT]
            path.with_name(path.name + (".txt" if as_text else ".npy.xz")).write_bytes(
                text(some) if as_text else npy_xz(some)
            )
        for name in ("y", "subject"):
            rows = (source / "test" / f"{name}_test.txt").read_text().split()[::49][:COUNT]
            (folder / split / f"{name}_{split}.txt").write_text("\n".join(rows) + "\n")
    (folder / "activity_labels.txt").write_bytes((source / "activity_labels.txt").read_bytes())
    return folder


@pytest.fixture
def few(tmp_path: Path, data_root: Path, signals: dict[str, NDArray[np.float32]]) -> Path:
    """A data folder with a slice of the real data."""
    write_slice(tmp_path, data_root, signals, as_text=False)
    return tmp_path


def whole(dataset: Dataset) -> NDArray[np.uint8]:
    out = np.zeros((dataset.num_examples, dataset.rows.row_bytes), np.uint8)
    dataset.read(np.arange(dataset.num_examples, dtype=np.uint32), out)
    return out.reshape(-1, *dataset.input_shape)


def test_the_real_splits_have_their_published_sizes_and_people(data_root: Path, signals: object) -> None:
    with (
        open_dataset("har", data_root, split="train") as train,
        open_dataset("har", data_root, split="test") as test,
    ):
        assert (train.num_examples, test.num_examples) == (7352, 2947)
        assert train.classes == test.classes == NAMES
        assert train.input_shape == test.input_shape == (128, 6)
        assert train.groups is not None
        assert test.groups is not None
        # Published with the data set.
        assert sorted(set(test.groups.tolist())) == [2, 4, 9, 10, 12, 13, 18, 20, 24]
        assert len(set(train.groups.tolist())) == 21
        assert not set(train.groups.tolist()) & set(test.groups.tolist())
        assert train.description == HAR_DESCRIPTION


def test_readings_come_back_from_the_numbers_in_the_description(
    data_root: Path, signals: dict[str, NDArray[np.float32]]
) -> None:
    with open_dataset("har", data_root, split="test") as dataset:
        windows = whole(dataset)

    for position, channel in enumerate(dataset.description["channels"]):
        assert channel["name"] == CHANNELS[position]
        low, high = channel["low"], channel["high"]
        readings = low + windows[:, :, position] * ((high - low) / 255)
        wanted = np.clip(signals[channel["name"]], low, high)
        assert np.abs(readings - wanted).max() <= (high - low) / 255 / 2 + 1e-6


def test_the_range_ends_at_0_and_255_and_clips() -> None:
    values = np.array([-9, -2, -1.999, -0.01, 0.01, 1.999, 2, 9], np.float32)

    assert InputRange((-2.0,), (2.0,)).quantise(values).tolist() == [0, 0, 0, 127, 128, 255, 255, 255]


def test_the_publisher_s_text_gives_the_same_bytes(
    few: Path, tmp_path_factory: pytest.TempPathFactory, data_root: Path, signals: dict[str, NDArray[np.float32]]
) -> None:
    other = tmp_path_factory.mktemp("text")
    write_slice(other, data_root, signals, as_text=True)

    with open_dataset("har", few, split="train") as packed, open_dataset(None, other, split="train") as plain:
        assert plain.name == "har"
        assert whole(packed).tobytes() == whole(plain).tobytes()
        assert packed.labels.tolist() == plain.labels.tolist()


def test_a_split_by_person_keeps_people_and_windows_together(few: Path) -> None:
    with open_dataset("har", few, split="train") as dataset:
        assert dataset.groups is not None
        person = int(dataset.groups[10])
        with dataset.subset(np.flatnonzero(dataset.groups == person)) as theirs:
            assert theirs.groups is not None
            assert set(theirs.groups.tolist()) == {person}
            assert theirs.description == HAR_DESCRIPTION
            assert whole(theirs).tobytes() == whole(dataset)[dataset.groups == person].tobytes()


def test_preparing_is_done_once_and_again_when_a_file_changes(few: Path) -> None:
    cache = Path(os.environ["BITFLEET_CACHE"])
    for _ in range(2):
        open_dataset("har", few, split="train").close()
    assert len(list(cache.iterdir())) == 1

    path = few / "UCI HAR Dataset" / "train" / "y_train.txt"
    path.write_text("6\n" * COUNT)

    with open_dataset("har", few, split="train") as dataset:
        assert set(dataset.labels.tolist()) == {5}


SIGNAL = "train/Inertial Signals/body_gyro_y_train.npy.xz"
NOT_A_NUMBER = np.full((COUNT, 128), np.nan, np.float32)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (SIGNAL, npy_xz(np.zeros((COUNT, 128), np.float32))[:-20], "is cut"),
        (SIGNAL, npy_xz(np.zeros((COUNT, 64), np.float32)), r"float32 \[60, 128\].*got float32 \[60, 64\]"),
        (SIGNAL, npy_xz(np.zeros((COUNT - 1, 128), np.float32)), r"got float32 \[59, 128\]"),
        (SIGNAL, npy_xz(np.zeros((COUNT, 128), np.float64)), r"got float64 \[60, 128\]"),
        (SIGNAL, npy_xz(np.zeros((COUNT, 128), np.float32, order="F")), "in columns"),
        (SIGNAL, npy_xz(NOT_A_NUMBER), "finite numbers, got nan"),
        (SIGNAL, npy_xz(np.array([print], object)), r"got object \[1\]"),
        (SIGNAL, lzma.compress(b"PK"), "as numpy.save writes it"),
        (SIGNAL, lzma.compress(lzma.decompress(npy_xz(NOT_A_NUMBER))[:-1]), "30720 bytes after its head, got 30719"),
        (SIGNAL, lzma.compress(bytes((1 << 27) + 1), preset=0), "at most 134217728 bytes"),
        ("train/y_train.txt", b"1\n" * (COUNT - 1) + b"7\n", r"integers in \[1, 6\].*up to 7"),
        ("train/y_train.txt", b"1\nwalking\n", "one integer in each row"),
        ("train/y_train.txt", b"", r"integers in \[1, 6\]"),
        ("train/subject_train.txt", b"1\n2\n", "must have 60 rows as .* has, got 2"),
        ("activity_labels.txt", b"1 WALKING\n3 SITTING\n", "a number from 1 on and a name"),
    ],
)
def test_a_damaged_file_is_named_and_leaves_nothing(few: Path, name: str, content: bytes, message: str) -> None:
    path = few / "UCI HAR Dataset" / name
    path.write_bytes(content)

    with pytest.raises(DataError, match=message) as caught:
        open_dataset("har", few, split="train")

    assert str(path) in str(caught.value)
    assert list(Path(os.environ["BITFLEET_CACHE"]).rglob("*images*")) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"1 2 3\n" * COUNT, r"got \[60, 3\]"), (b"1 2\n1\n", "cannot be read"), (b"<html>", "cannot be read")],
)
def test_damaged_text_is_named(few: Path, content: bytes, message: str) -> None:
    path = few / "UCI HAR Dataset" / SIGNAL.replace(".npy.xz", ".txt")
    path.write_bytes(content)  # preferred to the .npy.xz beside it

    with pytest.raises(DataError, match=message) as caught:
        open_dataset("har", few, split="train")

    assert str(path) in str(caught.value)


def test_missing_files_are_listed(tmp_path: Path, few: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(DataError) as nothing:
        open_dataset("har", tmp_path_factory.mktemp("empty"), split="test")
    (few / "UCI HAR Dataset" / SIGNAL).unlink()
    with pytest.raises(DataError) as some:
        open_dataset("har", few, split="train")

    for part in ("activity_labels.txt", "y_test.txt", "Inertial Signals/NAME_test.txt", "body_gyro_z", "har/UCI HAR"):
        assert part in str(nothing.value)
    assert "lacks train/Inertial Signals/body_gyro_y_train.txt)" in str(some.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-groups-idx1-ubyte", b"\0\0\x08\x01\0\0\0\x02\1\1", "one train group a sample, got 2 for 3"),
        ("train-groups-idx1-ubyte", b"\0\0\x08\x01\0\0\0\x03\1\1", "3 bytes after its header"),
        ("description.json", b"[1]", "must be a JSON object"),
        ("description.json", b"{", "cannot be read"),
    ],
)
def test_groups_and_descriptions_that_do_not_fit_are_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    write_idx(tmp_path, np.zeros((3, 4, 2), np.uint8), np.zeros(3, np.uint8), "train")
    (tmp_path / name).write_bytes(content)

    with pytest.raises(DataError, match=message):
        open_dataset("idx", tmp_path, split="train")


def test_the_command_trains_on_a_slice(few: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "train",
        "--model",
        "mlp",
        "--dataset",
        "har",
        "--data",
        str(few),
        "--widths",
        "64",
        "--batch-size",
        "20",
    ]

    result = run_json(capsys, *command, "--epochs", "20")

    assert result["dataset"] == "har"
    assert result["accuracy"] > 50  # the same windows as it was trained on; guessing gives 17


def test_the_command_says_what_is_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "activity_labels.txt" in fail(capsys, 3, "train", "--dataset", "har", "--data", str(tmp_path))


@pytest.mark.slow
def test_activities_of_other_people_are_told_apart(
    capsys: pytest.CaptureFixture[str], data_root: Path, signals: object
) -> None:
    result = run_json(capsys, "train", "--dataset", "har", "--data", str(data_root), "--epochs", "12")

    assert result["accuracy"] > 80

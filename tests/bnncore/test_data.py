"""Opening data sets by name, folder and environment; real MNIST and digits."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bnncore.data import Dataset, Split, open_dataset, write_idx
from bnncore.errors import DataError

IMAGES = np.arange(5 * 6, dtype=np.uint8).reshape(5, 2, 3)
LABELS = np.array([2, 0, 1, 2, 0], np.uint8)


@pytest.fixture(autouse=True)
def cache(own_folders: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own cache folder, and no data folder from outside."""
    monkeypatch.delenv("BITFLEET_DATA", raising=False)
    return Path(os.environ["BITFLEET_CACHE"])


def read(dataset_root: Path, indices: list[int], name: str | None = "idx") -> NDArray[np.uint8]:
    with open_dataset(name, dataset_root, split="train") as dataset:
        out = np.zeros((len(indices), dataset.rows.row_bytes), np.uint8)
        dataset.read(np.array(indices, np.uint32), out)
    return out


def test_rows_are_read_in_the_order_asked_for(tmp_path: Path) -> None:
    write_idx(tmp_path, IMAGES, LABELS, "train")

    rows = read(tmp_path, [4, 0, 4])

    assert rows.tolist() == [list(range(24, 30)), list(range(6)), list(range(24, 30))]


def test_a_subset_of_a_subset_keeps_rows_and_labels_together(tmp_path: Path) -> None:
    write_idx(tmp_path, IMAGES, LABELS, "train")
    with open_dataset("idx", tmp_path, split="train") as dataset:
        subset = dataset.subset(np.array([4, 2, 0])).subset(np.array([2, 1]))
    out = np.zeros((2, 6), np.uint8)

    with subset:  # the first data set is closed by now
        subset.read(np.array([0, 1], np.uint32), out)

    assert out[:, 0].tolist() == [0, 12]
    assert subset.labels.tolist() == [2, 1]
    assert (subset.num_examples, subset.classes, subset.input_shape) == (2, ("0", "1", "2"), (2, 3))


def test_a_file_that_shrinks_after_opening_is_an_error(tmp_path: Path) -> None:
    write_idx(tmp_path, IMAGES, LABELS, "train")
    with open_dataset("idx", tmp_path, split="train") as dataset:
        os.truncate(dataset.rows.path, dataset.rows.offset + 7)

        with pytest.raises(DataError):
            dataset.read(np.array([1], np.uint32), np.zeros((1, 6), np.uint8))


def test_mnist_has_its_published_counts_and_first_digits(data_root: Path) -> None:
    with (
        open_dataset("mnist", data_root, split="train") as train,
        open_dataset("mnist", data_root, split="test") as test,
    ):
        counts = np.bincount(train.labels).tolist(), np.bincount(test.labels).tolist()
        row = np.zeros((1, 784), np.uint8)
        train.read(np.array([59_999], np.uint32), row)

    # Published with the data set.
    assert counts[0] == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert counts[1] == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert train.classes == tuple("0123456789")
    assert train.input_shape == (28, 28)
    with gzip.open(data_root / "mnist" / "train-images-idx3-ubyte.gz") as file:
        assert row.tobytes() == file.read()[-784:]


def test_mnist_is_inflated_once(data_root: Path, cache: Path) -> None:
    open_dataset("mnist", data_root, split="test").close()
    [raw] = cache.iterdir()
    stamp = raw.stat().st_mtime_ns, raw.stat().st_ino

    open_dataset("mnist", data_root, split="test").close()

    assert (raw.stat().st_mtime_ns, raw.stat().st_ino) == stamp
    assert raw.stat().st_size == 16 + 10_000 * 784


@pytest.mark.parametrize("place", ["mnist", "MNIST/raw", "."])
def test_mnist_is_found_where_people_keep_it(tmp_path: Path, place: str) -> None:
    images = np.zeros((3, 28, 28), np.uint8)
    write_idx(tmp_path / place, images, np.array([1, 2, 3]), "train")

    with open_dataset("mnist", tmp_path, split="train") as dataset:
        assert dataset.num_examples == 3
        assert len(dataset.classes) == 10
    with open_dataset(None, tmp_path, split="train") as dataset:
        assert dataset.num_examples == 3


def test_the_environment_names_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path, IMAGES, LABELS, "train")
    monkeypatch.setenv("BITFLEET_DATA", str(tmp_path))

    with open_dataset(None, None, split="train") as dataset:
        assert dataset.num_examples == 5


def test_digits_are_split_once_for_all() -> None:
    with open_dataset("digits", None, split="train") as train, open_dataset("digits", None, split="test") as test:
        rows = np.concatenate([whole(train), whole(test)])
        labels = np.concatenate([train.labels, test.labels])

    assert (train.num_examples, test.num_examples) == (1438, 359)
    assert (train.input_shape, train.classes) == ((8, 8), tuple("0123456789"))
    assert set(test.labels) == set(range(10))
    sklearn = pytest.importorskip("sklearn.datasets").load_digits()
    theirs = np.column_stack([np.rint(sklearn.data * 255 / 16), sklearn.target])
    assert sorted(np.column_stack([rows, labels]).tolist()) == sorted(theirs.tolist())


def whole(dataset: Dataset) -> NDArray[np.uint8]:
    out = np.zeros((dataset.num_examples, dataset.rows.row_bytes), np.uint8)
    dataset.read(np.arange(dataset.num_examples, dtype=np.uint32), out)
    return out


def test_digits_are_found_without_importing_scikit_learn() -> None:
    script = (
        "import sys\nfrom bnncore.data import open_dataset\nopen_dataset('digits', None, split='test')\n"
        "sys.exit('sklearn' in sys.modules)"
    )

    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr


def test_digits_without_scikit_learn_name_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(DataError, match=r"pip install 'bitfleet\[server\]'"):
        open_dataset("digits", None, split="train")


def test_a_wrong_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    for name, root, message in [
        ("mnist", tmp_path, "MNIST/raw"),
        ("mnist", tmp_path / "absent", "does not exist"),
        ("mnist", None, "BITFLEET_DATA"),
        ("idx", tmp_path, "train-images"),
        ("digits", tmp_path, "digits.csv.gz"),
        (None, tmp_path, "train-images-idx3-ubyte"),
        (None, None, "--dataset"),
        ("imagenet", tmp_path, "'idx', 'images', 'mnist', 'npz', 'parquet'], got 'imagenet'"),
    ]:
        with pytest.raises(DataError) as caught:
            open_dataset(name, root, split="train")
        assert message in str(caught.value)


def test_images_of_another_shape_are_not_mnist(tmp_path: Path) -> None:
    write_idx(tmp_path, IMAGES, LABELS, "train")

    with pytest.raises(DataError, match="28 x 28"):
        open_dataset("mnist", tmp_path, split="train")


def gzip_in_place(path: Path) -> Path:
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return packed


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("which", ["images-idx3", "labels-idx1"])
def test_every_truncated_file_is_refused_by_name(tmp_path: Path, which: str, packed: bool) -> None:
    write_idx(tmp_path, IMAGES, LABELS, "train")
    path = tmp_path / f"train-{which}-ubyte"
    if packed:
        path = gzip_in_place(path)
    data = path.read_bytes()

    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(DataError) as caught:
            open_dataset("idx", tmp_path, split="train")
        assert path.name in str(caught.value)


@pytest.mark.parametrize("packed", [False, True])
def test_a_whole_file_opens_compressed_or_not(tmp_path: Path, packed: bool) -> None:
    write_idx(tmp_path, IMAGES, LABELS, "train")
    if packed:
        for path in list(tmp_path.glob("*-ubyte")):
            gzip_in_place(path)

    assert read(tmp_path, [0, 1, 2, 3, 4]).tobytes() == IMAGES.tobytes()


@pytest.mark.parametrize(
    ("which", "data", "message"),
    [
        ("images-idx3", b"\x00\x00\x0d\x03" + bytes(12), "first bytes 00 00 08"),
        ("images-idx3", b"<html>not found</html>", "first bytes"),
        ("images-idx3", b"", "nothing"),
        ("images-idx3", b"\0\0\x08\x03" + bytes([0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3]), "no sample"),
        ("images-idx3", b"\0\0\x08\x01\0\0\0\x05" + bytes(5), "2 dimensions"),
        ("images-idx3", b"\0\0\x08\x03" + b"\xff" * 12 + bytes(5), "Is the file complete"),
        ("labels-idx1", b"\0\0\x08\x01\0\0\0\x04" + bytes(4), "got 4 for 5 samples"),
        ("labels-idx1", b"\0\0\x08\x01\0\0\0\x05" + bytes(6), "got more"),
        ("labels-idx1", b"\0\0\x08\x02\0\0\0\x05\0\0\0\x01" + bytes(5), "1 dimension"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, which: str, data: bytes, message: str) -> None:
    write_idx(tmp_path, IMAGES, LABELS, "train")
    (tmp_path / f"train-{which}-ubyte").write_bytes(data)

    with pytest.raises(DataError, match=message):
        open_dataset("idx", tmp_path, split="train")


def test_a_gzip_file_that_inflates_to_more_than_it_says_is_stopped(tmp_path: Path, cache: Path) -> None:
    write_idx(tmp_path, IMAGES, LABELS, "train")
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes() + bytes(1 << 20))
    gzip_in_place(path)

    with pytest.raises(DataError, match="more bytes than its header says"):
        open_dataset("idx", tmp_path, split="train")

    assert list(cache.iterdir()) == []


def test_a_replaced_gzip_file_is_inflated_again(tmp_path: Path) -> None:
    write_idx(tmp_path, IMAGES, LABELS, "train")
    gzip_in_place(tmp_path / "train-images-idx3-ubyte")
    read(tmp_path, [0])
    write_idx(tmp_path, IMAGES + 1, LABELS, "train")
    gzip_in_place(tmp_path / "train-images-idx3-ubyte")

    assert read(tmp_path, [0])[0].tolist() == [1, 2, 3, 4, 5, 6]


def test_missing_labels_are_named(tmp_path: Path) -> None:
    write_idx(tmp_path, IMAGES, LABELS, "train")
    (tmp_path / "train-labels-idx1-ubyte").unlink()

    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\[\.gz\] beside train-images"):
        open_dataset("idx", tmp_path, split="train")


def test_classes_have_the_names_in_the_file(tmp_path: Path) -> None:
    write_idx(tmp_path, IMAGES, LABELS, "train", classes=["cat", "dög", "owl"])

    with open_dataset("idx", tmp_path, split="train") as dataset:
        assert dataset.classes == ("cat", "dög", "owl")


def test_both_splits_have_the_same_classes(tmp_path: Path) -> None:
    write_idx(tmp_path, IMAGES, LABELS, "train")
    write_idx(tmp_path, IMAGES, LABELS + 2, "test")

    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        with open_dataset("idx", tmp_path, split=split) as dataset:
            assert dataset.classes == ("0", "1", "2", "3", "4")


@pytest.mark.parametrize("text", ['["cat", "dog"]', '["cat", "cat", "dog"]', "{}", "[1, 2, 3]", "[", '["a", "b", ""]'])
def test_class_names_that_do_not_fit_are_refused(tmp_path: Path, text: str) -> None:
    write_idx(tmp_path, IMAGES, LABELS, "train")
    (tmp_path / "classes.json").write_text(text)

    with pytest.raises(DataError, match=r"classes\.json|must be below 2.*got 2 at position 0"):
        open_dataset("idx", tmp_path, split="train")


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (IMAGES.astype(np.float32), LABELS),
        (IMAGES[:0], LABELS[:0]),
        (IMAGES, LABELS[:4]),
        (IMAGES[:, 0, 0], LABELS),
    ],
)
def test_writing_refuses_what_cannot_be_read_back(tmp_path: Path, images: NDArray[Any], labels: NDArray[Any]) -> None:
    with pytest.raises(DataError, match=r"uint8 \[n, \.\.\.\]"):
        write_idx(tmp_path, images, labels, "train")


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 6))
def test_any_shape_survives_writing_and_reading(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], count: int
) -> None:
    folder = tmp_path_factory.mktemp("idx")
    images = np.random.default_rng(count).integers(0, 256, (count, *shape), np.uint8)
    write_idx(folder, images, np.zeros(count, np.uint8), "train")

    with open_dataset("idx", folder, split="train") as dataset:
        assert dataset.input_shape == tuple(shape)
        assert whole(dataset).tobytes() == images.tobytes()


def test_an_unwritable_cache_names_the_variable_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path, IMAGES, LABELS, "train")
    gzip_in_place(tmp_path / "train-images-idx3-ubyte")
    (tmp_path / "file").touch()
    monkeypatch.setenv("BITFLEET_CACHE", str(tmp_path / "file" / "cache"))

    with pytest.raises(DataError, match="BITFLEET_CACHE"):
        open_dataset("idx", tmp_path, split="train")

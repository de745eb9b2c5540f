"""Folders of pictures: found, split, brought to one size by another process, and told what is wrong with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_runs import run_json
from numpy.typing import NDArray
from PIL import Image

from bnncore.data import Dataset, open_dataset
from bnncore.data.images import image_files
from bnncore.errors import DataError


@pytest.fixture(autouse=True)
def no_data_folder(own_folders: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data folder from outside."""
    monkeypatch.delenv("BITFLEET_DATA", raising=False)


def paint(path: Path, colour: tuple[int, int, int], *, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path)


def paint_classes(folder: Path, count: int = 3) -> None:
    """Red and blue pictures; enough to be told apart."""
    for number in range(count):
        paint(folder / "red" / f"{number}.png", (200 + number, 0, 0))
        paint(folder / "blue" / f"{number}.PNG", (0, 0, 200 + number))


def read_all(dataset: Dataset) -> NDArray[np.uint8]:
    out = np.zeros((dataset.num_examples, dataset.rows.row_bytes), np.uint8)
    dataset.read(np.arange(dataset.num_examples, dtype=np.uint32), out)
    return out.reshape(-1, *dataset.input_shape)


@pytest.mark.parametrize("test_folder", ["test", "val", "validation"])
def test_class_folders_become_labelled_samples(tmp_path: Path, test_folder: str) -> None:
    paint_classes(tmp_path / "train")
    paint_classes(tmp_path / test_folder, 1)
    paint(tmp_path / "train" / ".hidden" / "0.png", (0, 0, 0))
    (tmp_path / "train" / "red" / "notes.txt").write_text("no picture")
    (tmp_path / "train" / "empty").mkdir()

    with open_dataset(None, tmp_path, split="train") as train, open_dataset("images", tmp_path, split="test") as test:
        samples, few = read_all(train), read_all(test)

        assert (train.name, train.input_shape, train.classes) == ("images", (32, 32, 3), ("blue", "red"))
        assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert test.labels.tolist() == [0, 1]
    assert samples[:, 5, 7].tolist() == [[0, 0, 200], [0, 0, 201], [0, 0, 202], [200, 0, 0], [201, 0, 0], [202, 0, 0]]
    assert few[:, 0, 0].tolist() == [[0, 0, 200], [200, 0, 0]]


def test_pictures_are_cut_to_their_middle_and_turned_upright(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "wide"
    folder.mkdir(parents=True)
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = (10, 200, 30)  # the middle third, which alone stays
    Image.fromarray(wide).save(folder / "a.png")
    turned = np.zeros((20, 20, 3), np.uint8)
    turned[:10] = 255  # white above, before the camera's note is heeded
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(turned).save(folder / "b.png", exif=exif)
    Image.fromarray(np.full((9, 9), 77, np.uint8)).save(folder / "c.png")
    Image.new("RGBA", (9, 9), (1, 2, 3, 255)).save(folder / "d.png")

    with open_dataset("images", tmp_path, split="train", image_shape=(10, 10)) as dataset:
        samples = read_all(dataset)

    assert samples.shape == (4, 10, 10, 3)
    # Shrinking looks a pixel beyond the cut.
    assert samples[0, :, 1:-1].reshape(-1, 3).tolist() == [[10, 200, 30]] * 80
    assert samples[1, 0, 0].tolist() == [0, 0, 0]
    assert samples[1, 9, 9].tolist() == [255, 255, 255]
    assert np.all(samples[2] == 77)
    assert samples[3, 4, 4].tolist() == [1, 2, 3]


def test_one_in_ten_is_held_out_and_stays_so(tmp_path: Path) -> None:
    for number in range(200):
        paint(tmp_path / ("cat" if number % 2 else "dog") / f"{number}.png", (number, 0, 0), size=(2, 2))

    def names(split: str) -> set[str]:
        return {path.name for _, paths in image_files(tmp_path, split) for path in paths}  # type: ignore[arg-type]

    train, test = names("train"), names("test")
    paint(tmp_path / "cat" / "one more.png", (1, 1, 1))

    assert len(train) + len(test) == 200
    assert not train & test
    assert 8 <= len(test) <= 35  # 20 on average
    assert names("train") >= train
    assert names("test") >= test


def test_a_changed_folder_or_size_is_prepared_again(tmp_path: Path) -> None:
    paint_classes(tmp_path / "train")
    with open_dataset("images", tmp_path, split="train") as dataset:
        first = dataset.rows.path
    with open_dataset("images", tmp_path, split="train") as dataset:
        assert dataset.rows.path == first
    with open_dataset("images", tmp_path, split="train", image_shape=(16, 20, 1)) as dataset:
        assert dataset.rows.path != first
        assert dataset.input_shape == (16, 20, 1)
        assert np.all(np.ptp(read_all(dataset).reshape(6, -1), axis=1) == 0)
    paint(tmp_path / "train" / "red" / "new.png", (255, 255, 255))
    with open_dataset("images", tmp_path, split="train") as dataset:
        assert dataset.num_examples == 7


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path, damage: str) -> None:
    paint_classes(tmp_path / "train")
    path = tmp_path / "train" / "red" / "1.png"
    path.write_bytes({"cut": path.read_bytes()[:50], "empty": b"", "text": b"not a picture"}[damage])

    with pytest.raises(DataError, match=r"red/1\.png cannot be read as a picture: .*take it out of the folder"):
        open_dataset("images", tmp_path, split="train")


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    paint_classes(tmp_path / "train")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "train" / "red" / "huge.png")

    with pytest.raises(DataError, match=r"huge\.png .*(20000 x 20000|cannot be read)"):
        open_dataset("images", tmp_path, split="train")


def test_folders_without_pictures_and_classes_of_the_test_split_alone_are_told(tmp_path: Path) -> None:
    (tmp_path / "train" / "red").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no pictures for the train split in .*train: looked for <class>/\*.*\.png"):
        open_dataset("images", tmp_path, split="train")
    paint_classes(tmp_path / "train")
    paint(tmp_path / "test" / "green" / "0.png", (0, 255, 0))
    with pytest.raises(DataError, match=r"has pictures of green, .* Its classes are blue, red"):
        open_dataset("images", tmp_path, split="test")


def test_more_classes_than_a_label_can_tell_are_refused(tmp_path: Path) -> None:
    for number in range(257):
        paint(tmp_path / "train" / f"{number:03}" / "0.png", (0, 0, 0), size=(1, 1))

    with pytest.raises(DataError, match="257 class folders, at most 256"):
        open_dataset("images", tmp_path, split="train")


@pytest.mark.parametrize("shape", [(8,), (8, 8, 2), (0, 8, 3), (8, 5000), (8, 8, 3, 1)])
def test_a_shape_that_no_picture_has_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    paint_classes(tmp_path / "train")

    with pytest.raises(DataError, match="Check --image-shape"):
        open_dataset("images", tmp_path, split="train", image_shape=shape)
    with pytest.raises(DataError, match="belongs to data set 'images', got 'idx'"):
        open_dataset("idx", tmp_path, split="train", image_shape=(8, 8))


def test_a_network_learns_from_a_folder_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paint_classes(tmp_path / "train", 20)
    paint_classes(tmp_path / "val", 5)
    options = (
        "--data",
        str(tmp_path),
        "--batch-size",
        "10",
        "--epochs",
        "8",
        "--image-shape",
        "12,12",
        "--widths",
        "16",
    )

    result = run_json(capsys, "train", "--model", "mlp", *options)

    assert (result["dataset"], result["accuracy"]) == ("images", 100.0)


def test_training_does_not_import_pillow(tmp_path: Path) -> None:
    paint_classes(tmp_path / "train")
    code = (
        "import sys; from pathlib import Path; from bnncore.data import open_dataset\n"
        "open_dataset('images', Path(sys.argv[1]), split='train').close()\n"
        "assert 'PIL' not in sys.modules, 'Pillow takes memory that is not its own'"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)

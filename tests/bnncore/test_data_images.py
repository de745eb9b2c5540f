"""Folders of pictures: found, split, brought to one size by another process, and told what is wrong with them."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from bnncore.data import Dataset, images, open_dataset, open_for_job, survey_data
from bnncore.data.cache import cache_folder
from bnncore.data.image_folder import find_image_classes
from bnncore.data.image_reader import read_image
from bnncore.data.view import open_view
from bnncore.errors import DataError
from tests.bnncore.cli_runs import run_json


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
        return {file for one in find_image_classes(tmp_path, split) for file in one.files}  # type: ignore[arg-type]

    train, test = names("train"), names("test")
    paint(tmp_path / "cat" / "one more.png", (1, 1, 1))

    assert len(train) + len(test) == 200
    assert not train & test
    assert 8 <= len(test) <= 35  # 20 on average
    assert names("train") >= train
    assert names("test") >= test


def read_log(caplog: pytest.LogCaptureFixture) -> str:
    return " ".join(record.getMessage() for record in caplog.records)


def test_each_picture_is_read_once_for_a_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    root, store = tmp_path / "data", tmp_path / "store"

    def count(path: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        read.append(path.name)
        return read_image(path, shape)

    def prepare() -> list[str]:
        read.clear()
        view = images.prepare_images(root, "train", store, "4x4x1", on_part=lambda done, total: None)
        with open_view(view, name="images") as dataset:  # type: ignore[union-attr]
            views.append((dataset.subset(np.arange(dataset.num_examples)), read_all(dataset)))
        return read.copy()

    monkeypatch.setattr(images, "read_image", count)
    views: list[tuple[Dataset, NDArray[np.uint8]]] = []
    paint_classes(root / "train", 3)
    assert len(prepare()) == 6
    assert prepare() == []
    paint(root / "train" / "red" / "new.png", (255, 255, 255))
    paint(root / "train" / "blue" / "1.PNG", (9, 9, 9), size=(9, 8))
    assert sorted(prepare()) == ["1.PNG", "new.png"]
    # A power cut in the middle of a line, and rows that nothing names.
    with open(store / "index", "ab") as index, open(store / "rows-0", "ab") as rows:
        index.write(b'["train/blue/')
        rows.write(b"x" * 20)
    paint(root / "train" / "blue" / "more.png", (8, 8, 8))
    assert prepare() == ["more.png"]
    assert prepare() == []
    # Many come and go: the rows that stay are copied, none is read again.
    for number in range(70):
        paint(root / "train" / "red" / f"x{number}.png", (number, 0, 0))
    assert len(prepare()) == 70
    for number in range(70):
        (root / "train" / "red" / f"x{number}.png").unlink()
    assert prepare() == []
    assert (store / "rows-1").stat().st_size == 8 * 16

    assert views[-1][1][:, 0, 0, 0].tolist() == [23, 9, 23, 8, 60, 60, 60, 255]
    for task, before in views:  # whoever trains has what was there when it began
        assert np.array_equal(read_all(task), before)


def test_a_folder_in_each_shape_is_prepared_by_itself(tmp_path: Path) -> None:
    paint_classes(tmp_path / "train")
    with open_dataset("images", tmp_path, split="train") as dataset:
        first = dataset.rows.path
    with open_dataset("images", tmp_path, split="train") as dataset:
        assert dataset.rows.path == first
    (store,) = cache_folder().glob("images-32x32x3-*")
    for side in range(1, 10):  # whoever asks for many shapes does not fill the disk
        old = store.with_name(store.name.replace("32x32x3", f"{side}x1x3"))
        old.mkdir()
        os.utime(old, (side, side))
    with open_for_job("images", tmp_path, split="train", input_shape=(16, 20)) as dataset:
        assert dataset.rows.path.resolve() != first.resolve()
        assert dataset.input_shape == (16, 20)
    assert len(list(cache_folder().glob("images-*"))) == 8
    with open_dataset("images", tmp_path, split="train", image_shape=(16, 20, 1)) as dataset:
        assert dataset.input_shape == (16, 20, 1)
        assert np.all(np.ptp(read_all(dataset).reshape(6, -1), axis=1) == 0)


@pytest.mark.parametrize("damage", ["rows-0", "index", "order", "view.json"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, damage: str) -> None:
    paint_classes(tmp_path / "train")
    with open_dataset("images", tmp_path, split="train", image_shape=(4, 4)) as dataset:
        expected = read_all(dataset)
    (store,) = cache_folder().glob("images-*")
    (path,) = store.rglob(damage)
    path.write_bytes(path.read_bytes()[:20])
    shutil.rmtree(next(store.glob("train-*"))) if damage == "index" else None

    with open_dataset("images", tmp_path, split="train", image_shape=(4, 4)) as dataset:
        assert np.array_equal(read_all(dataset), expected)


def test_pictures_that_cannot_be_read_are_left_out_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "data"
    paint_classes(root / "train", 8)
    red = root / "train" / "red"
    damages = {"1": (red / "1.png").read_bytes()[:50], "2": b"", "3": b"no picture", "4": b"%!PS-Adobe-3.0 EPSF-3.0"}
    for name, content in damages.items():
        (red / f"{name}.png").write_bytes(content)
    Image.new("1", (9_000, 9_000)).save(red / "huge.png")
    Image.fromarray(np.ones((4, 4), np.float32)).save(red / "real.tif")
    paint(tmp_path / "private" / "me.png", (1, 2, 3))
    turned, buffer = Image.Exif(), io.BytesIO()
    turned[0x0112], turned[0x010E] = 6, "text"
    Image.new("RGB", (9, 9)).save(buffer, "JPEG", exif=turned)
    # A width that is a text, over which Pillow stumbles when it turns the picture.
    (red / "tags.jpg").write_bytes(buffer.getvalue().replace(b"\x01\x0e\x00\x02", b"\x01\x01\x00\x02"))
    (red / "link.png").symlink_to(tmp_path / "private" / "me.png")
    (red / "inner.png").symlink_to(red / "0.png")
    (red / "dangling.png").symlink_to(red / "gone.png")

    with open_dataset("images", root, split="train") as dataset:
        assert dataset.num_examples == 8 + 4 + 1
        assert dataset.labels.tolist() == [0] * 8 + [1] * 5
        reasons = {reason.partition(": ")[0].rpartition("/")[2]: reason for reason in dataset.broken.reasons}
    assert dataset.broken.count == 8
    assert set(reasons) == {"1.png", "2.png", "3.png", "4.png", "huge.png", "real.tif", "tags.jpg", "link.png"}
    assert "leads out of the data folder" in reasons["link.png"]
    assert "9000 x 9000 pixels" in reasons["huge.png"]
    assert "8 of 21 pictures (train) are left out" in read_log(caplog)

    paint_classes(root / "train", 8)  # now they are written to their end
    with open_dataset("images", root, split="train") as dataset:
        assert (dataset.num_examples, dataset.broken.count) == (17, 4)


def test_a_folder_of_nothing_but_broken_pictures_is_told(tmp_path: Path) -> None:
    (tmp_path / "train" / "red").mkdir(parents=True)
    (tmp_path / "train" / "red" / "0.png").write_bytes(b"")

    with pytest.raises(DataError, match=r"none of the 1 pictures \(train\) .* The first: .*red/0\.png: "):
        open_dataset("images", tmp_path, split="train")


def test_every_kind_of_pixel_becomes_what_it_looks_like(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "größe"
    folder.mkdir(parents=True)
    Image.fromarray(np.full((9, 9), 300 * 100, np.uint16)).save(folder / "a16.png")
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(folder / "b-clear.png")
    Image.new("CMYK", (9, 9), (0, 255, 255, 0)).save(folder / "c-cmyk.jpg", quality=100)
    Image.new("P", (9, 9), 0).save(folder / "d-palette.gif")
    Image.new("LA", (9, 9), (50, 255)).save(folder / "e-grey.png")

    with open_dataset("images", tmp_path, split="train", image_shape=(4, 4)) as dataset:
        colours = read_all(dataset)[:, 1, 1]
        assert dataset.classes == ("größe",)
    assert colours[0].tolist() == [117] * 3
    assert colours[1].tolist() == [255] * 3
    assert np.abs(colours[2].astype(int) - (255, 0, 0)).max() <= 3
    assert colours[3].tolist() == [0] * 3
    assert colours[4].tolist() == [50] * 3


def test_a_class_may_be_written_in_either_form_of_unicode(tmp_path: Path) -> None:
    paint(tmp_path / "train" / unicodedata.normalize("NFD", "été") / "0.png", (1, 1, 1))
    assert survey_data("images", tmp_path).classes == ("été",)

    paint(tmp_path / "train" / "été" / "0.png", (1, 1, 1))
    with pytest.raises(DataError, match="the same class, 'été'"):
        survey_data("images", tmp_path)


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

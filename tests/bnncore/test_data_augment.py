"""Augmentation: what it does to pixels, what decides it, and that evaluation never sees it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bnncore.cli.main import main
from bnncore.data import Split, write_idx
from bnncore.data.augment import PAD_VALUE, Augmentation, Augmenter
from bnncore.errors import DataError
from bnncore.reference import random_words
from bnncore.seeds import derive_seed
from tests.bnncore.cli_runs import SMALL, fail, make_shapes, run_json


def augment(
    images: NDArray[np.uint8], what: str, *, seed: int = 1, epoch: int = 0, indices: list[int] | None = None
) -> NDArray[np.uint8]:
    batch = images.reshape(len(images), -1).copy()
    augmenter = Augmenter(Augmentation.parse(what), images.shape[1:], batch_size=len(images), seed=seed)
    chosen = np.arange(len(images)) if indices is None else np.array(indices)
    augmenter.apply(batch, chosen.astype(np.uint32), epoch)
    return batch.reshape(images.shape)


def noise(count: int, *shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(1, 256, (count, *shape), np.uint8)


def moved(image: NDArray[np.uint8], y: int, x: int) -> NDArray[np.uint8]:
    """Move an image down by y and right by x, pixel by pixel."""
    height, width = image.shape[:2]
    out = np.full_like(image, PAD_VALUE)
    for i in range(height):
        for j in range(width):
            if 0 <= i - y < height and 0 <= j - x < width:
                out[i, j] = image[i - y, j - x]
    return out


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3)])
@pytest.mark.parametrize("what", ["shift=2,flip", "shift=1", "flip"])
def test_each_image_is_one_of_the_possible_ones_and_all_occur(shape: tuple[int, ...], what: str) -> None:
    images = np.repeat(noise(1, *shape), 600, axis=0)
    reach = range(-2, 3) if "2" in what else range(-1, 2) if "1" in what else range(1)
    sides = [images[0], images[0][:, ::-1]] if "flip" in what else [images[0]]
    # Mirrored after it is moved, so margins are mirrored too; over all shifts that is the same set.
    possible = {moved(side, y, x).tobytes() for side in sides for y in reach for x in reach}

    seen = Counter(image.tobytes() for image in augment(images, what))

    assert set(seen) == possible
    mean = 600 / len(possible)
    assert max(abs(count - mean) for count in seen.values()) < 5 * mean**0.5


def test_seed_epoch_and_index_decide_and_nothing_else() -> None:
    images = np.repeat(noise(1, 8, 8), 40, axis=0)
    first = augment(images, "shift=3,flip")

    assert augment(images, "shift=3,flip").tobytes() == first.tobytes()
    assert augment(images[:7], "shift=3,flip", indices=list(range(33, 40))).tobytes() == first[33:].tobytes()
    backwards = augment(images, "shift=3,flip", indices=list(range(39, -1, -1)))
    assert backwards[::-1].tobytes() == first.tobytes()
    assert augment(images, "shift=3,flip", epoch=1).tobytes() != first.tobytes()
    assert augment(images, "shift=3,flip", seed=2).tobytes() != first.tobytes()


@given(st.lists(st.integers(0, (1 << 30) - 1), min_size=1, max_size=9), st.integers(0, (1 << 63) - 1))
def test_the_words_are_those_of_the_engine_s_generator(indices: list[int], seed: int) -> None:
    augmenter = Augmenter(Augmentation(), (2, 2), batch_size=9, seed=seed)
    key = derive_seed(seed, "augment", 5)
    counters = np.array(indices, np.int64)[:, None] * 4 + np.arange(3)

    words = augmenter._draw(np.array(indices, np.uint32), 5)

    assert words.tolist() == random_words((key & 0xFFFFFFFF, key >> 32), counters).tolist()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("shift=4,flip", Augmentation(4, True)),
        ("flip,shift=2", Augmentation(2, True)),
        ("flip", Augmentation(0, True)),
        ("shift=1", Augmentation(1, False)),
    ],
)
def test_texts_are_read_and_written_back(text: str, wanted: Augmentation) -> None:
    assert Augmentation.parse(text) == wanted
    assert Augmentation.parse(str(wanted)) == wanted


@pytest.mark.parametrize(
    "text", ["", "shift", "shift=-1", "shift=0", "shift=x", "flip=1", "flip,flip", "rotate", "shift=1;flip"]
)
def test_other_texts_are_a_usage_mistake(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"such as shift=4,flip, got"):
        Augmentation.parse(text)

    assert main(["train", f"--augment={text}"]) == 2
    assert "shift=4,flip" in capsys.readouterr().err


@pytest.mark.parametrize(("shape", "message"), [((9,), "2 or 3"), ((2, 2, 2, 2), "2 or 3"), ((4, 9), "smaller")])
def test_samples_that_cannot_be_augmented_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Augmenter(Augmentation(4), shape, batch_size=1, seed=0)


def test_training_changes_and_stays_reproducible(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["train", "--data", str(make_shapes(tmp_path)), *SMALL, "--epochs", "3"]

    plain = run_json(capsys, *command)
    augmented = [run_json(capsys, *command, "--augment", "shift=1,flip", "--threads", n) for n in "12"]

    assert (plain["augment"], augmented[0]["augment"]) == (None, "shift=1,flip")
    assert augmented[0]["weights_digest"] == augmented[1]["weights_digest"] != plain["weights_digest"]
    assert augmented[0]["accuracy"] > 90  # bright and dark stay so


def test_signals_are_not_images(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        write_idx(tmp_path, noise(20, 8, 6), np.arange(20) % 2, split)
    (tmp_path / "description.json").write_text('{"kind": "signals"}')

    assert "holds signals" in fail(capsys, 3, "train", "--data", str(tmp_path), *SMALL, "--augment", "flip")

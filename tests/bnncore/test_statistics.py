"""Batch norm's statistics taken anew: what they are means of, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bnncore.data import Dataset, open_dataset, write_idx
from bnncore.engine import Engine
from bnncore.errors import DataError
from bnncore.optimizer import resolve_preset
from bnncore.state import without_statistics
from bnncore.training import batches, observe, train
from bnncore.zoo import binarynet, cnv, mlp

SPECS = {
    "mlp": mlp((6, 6), (20, 12), 3),
    "cnv": cnv((12, 12, 2), (16, 8), 1, (12,), 3),
    "binarynet": binarynet((8, 8, 2), (16,), 2, (12,), 3),
}
PRESETS = ("bitfleet", "standard", "paper")


def make_engine(model: str, preset: str, *, threads: int = 1) -> Engine:
    engine = Engine(SPECS[model], batch_size=8, preset=resolve_preset(preset), seed=3, threads=threads)
    engine.initialise()
    return engine


def give_batch(engine: Engine, number: int) -> None:
    rng = np.random.default_rng(number)
    engine.input[:] = rng.integers(0, 256, engine.input.shape, dtype=np.uint8)
    engine.labels[:] = rng.integers(0, 3, engine.labels.shape)


def statistics_of(engine: Engine) -> dict[str, NDArray[np.float32]]:
    return {name: array for name, array in engine.state().items() if name.endswith((".mean", ".mean_abs_dev"))}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("model", SPECS)
def test_observed_statistics_are_the_mean_over_the_batches(model: str, preset: str) -> None:
    engine = make_engine(model, preset)
    give_batch(engine, 0)
    for _ in range(3):
        engine.step()
    alone = []
    for number in range(5):
        give_batch(engine, number)
        engine.observe(0)  # forgets what was there
        alone.append(statistics_of(engine))

    for number in range(5):
        give_batch(engine, number)
        engine.observe(number)

    for name, found in statistics_of(engine).items():
        wanted = np.mean([part[name].astype(float) for part in alone], axis=0)
        scale = np.max([np.abs(part[name]) for part in alone])
        assert np.allclose(found, wanted, rtol=0, atol=4e-7 * scale * 5), name  # half an ulp at each of five steps
        assert not np.array_equal(found, alone[-1][name]), name


@pytest.mark.parametrize("preset", PRESETS)
def test_observing_changes_no_weight_and_nothing_that_follows(preset: str) -> None:
    engine, undisturbed = make_engine("cnv", preset), make_engine("cnv", preset)
    for step in range(4):
        for each in (engine, undisturbed):
            give_batch(each, step)
            each.step()
        give_batch(engine, 100 + step)
        engine.observe(0)

    weights, wanted = without_statistics(engine.state()), without_statistics(undisturbed.state())
    assert all(np.array_equal(weights[name], wanted[name]) for name in wanted)
    assert engine.steps_done == 4


def test_statistics_do_not_depend_on_threads() -> None:
    engines = [make_engine("cnv", "bitfleet", threads=threads) for threads in (1, 2, 3)]
    for engine in engines:
        for number in range(3):
            give_batch(engine, number)
            engine.observe(number)

    assert len({engine.weights_digest() for engine in engines}) == 1


@pytest.fixture
def dataset(tmp_path: Path) -> Iterator[Dataset]:
    rng = np.random.default_rng(5)
    write_idx(tmp_path, rng.integers(0, 256, (50, 6, 6), dtype=np.uint8), np.arange(50) % 3, "train")
    with open_dataset("idx", tmp_path, split="train") as opened:
        yield opened


@pytest.mark.parametrize("asked", [2, 6, 50])
def test_a_data_set_is_observed_in_full_batches_of_its_order(dataset: Dataset, asked: int) -> None:
    engine, by_hand = make_engine("mlp", "bitfleet"), make_engine("mlp", "bitfleet")

    observe(engine, dataset, num_batches=asked, seed=9)

    for number, indices in enumerate(batches(50, 8, seed=9, epoch=0)[:asked]):  # 6 full ones
        dataset.read(indices, by_hand.input)
        by_hand.labels[:] = dataset.labels[indices]
        by_hand.observe(number)
    assert engine.weights_digest() == by_hand.weights_digest()


def test_a_data_set_smaller_than_a_batch_cannot_be_observed(dataset: Dataset) -> None:
    engine = Engine(SPECS["mlp"], batch_size=64)

    with pytest.raises(DataError, match="a batch has 64 samples, the data set only 50"):
        observe(engine, dataset, seed=0)


def test_training_ends_each_epoch_with_statistics_of_the_weights_as_they_are(dataset: Dataset) -> None:
    engine, running, again = (make_engine("mlp", "bitfleet") for _ in range(3))

    train(engine, dataset, epochs=2, seed=1)
    train(running, dataset, epochs=2, seed=1, statistics_batches=0)

    assert engine.weights_digest() != running.weights_digest()
    weights, wanted = without_statistics(engine.state()), without_statistics(running.state())
    assert all(np.array_equal(weights[name], wanted[name]) for name in wanted)
    again.load_state(running.state())
    for number, indices in enumerate(batches(50, 8, seed=1, epoch=1)):
        dataset.read(indices, again.input)
        again.observe(number)
    assert again.weights_digest() == engine.weights_digest()

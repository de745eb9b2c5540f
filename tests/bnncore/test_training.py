"""The loop around the engine: order, schedule, counts, and that something is learnt."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bnncore.data import Dataset, open_dataset, write_idx
from bnncore.engine import Engine
from bnncore.errors import DataError, ShapeError
from bnncore.evaluator import StepResult
from bnncore.state import weights_digest
from bnncore.training import EpochResult, batches, evaluate, train
from bnncore.zoo import mlp

SPEC = mlp((4, 4), (16,), 3)


def make_dataset(folder: Path, count: int, *, classes: int = 3) -> Dataset:
    """Noise around one random pattern a class: easy, but not to be had without learning."""
    generator = np.random.default_rng(1)
    patterns = generator.integers(0, 2, (classes, 4, 4)) * 200
    labels = np.arange(count) % classes
    images = patterns[labels] + generator.integers(0, 56, (count, 4, 4))
    write_idx(folder, images.astype(np.uint8), labels, "train")
    return open_dataset("idx", folder, split="train")


@pytest.fixture
def dataset(tmp_path: Path) -> Iterator[Dataset]:
    """47 samples of 4 x 4 in three classes."""
    with make_dataset(tmp_path, 47) as opened:
        yield opened


class RecordingEngine(Engine):
    """The engine, noting what each step was given."""

    scales: list[float]
    seen: list[bytes]

    def step(self, step_scale: float = 1.0) -> StepResult:
        self.scales = [*getattr(self, "scales", []), step_scale]
        self.seen = [*getattr(self, "seen", []), *(row.tobytes() for row in self.input)]
        return super().step(step_scale)


def test_training_learns_and_evaluation_agrees_with_prediction(dataset: Dataset) -> None:
    engine = Engine(SPEC, batch_size=10, seed=1)
    engine.initialise()
    before = evaluate(engine, dataset)

    train(engine, dataset, epochs=30, seed=1)
    after = evaluate(engine, dataset)

    assert after.accuracy > 90 > before.accuracy
    assert after.loss < before.loss
    predicted: list[int] = []
    for start in range(0, 47, 10):
        indices = np.arange(start, min(47, start + 10), dtype=np.uint32)
        dataset.read(indices, engine.input[: len(indices)])
        predicted.extend(engine.predict_batch(len(indices)).tolist())
    assert after.accuracy == pytest.approx(100 * np.mean(np.array(predicted) == dataset.labels))
    assert after.count == 47


def test_an_epoch_sees_full_batches_of_different_samples(dataset: Dataset) -> None:
    engine = RecordingEngine(SPEC, batch_size=10)

    result = train(engine, dataset, epochs=1, seed=3)

    assert result.steps == 4  # 47 // 10; 7 samples wait for another epoch
    rows = np.zeros((47, 16), np.uint8)
    dataset.read(np.arange(47, dtype=np.uint32), rows)
    assert len(set(engine.seen)) == 40
    assert set(engine.seen) < {row.tobytes() for row in rows}


def test_labels_travel_with_their_samples(dataset: Dataset) -> None:
    class LabelEngine(RecordingEngine):
        pairs: list[tuple[bytes, int]]

        def step(self, step_scale: float = 1.0) -> StepResult:
            pairs = [(row.tobytes(), int(label)) for row, label in zip(self.input, self.labels, strict=True)]
            self.pairs = [*getattr(self, "pairs", []), *pairs]
            return super().step(step_scale)

    engine = LabelEngine(SPEC, batch_size=10)
    rows = np.zeros((47, 16), np.uint8)
    dataset.read(np.arange(47, dtype=np.uint32), rows)
    label_of = {row.tobytes(): int(label) for row, label in zip(rows, dataset.labels, strict=True)}

    train(engine, dataset, epochs=2, seed=3)

    assert len(engine.pairs) == 80
    assert all(label_of[row] == label for row, label in engine.pairs)


def test_orders_differ_between_epochs_and_seeds() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [int(index) for batch in batches(100, 10, seed=seed, epoch=epoch) for index in batch]

    orders = [order(0, 0), order(0, 1), order(1, 0)]

    assert order(0, 0) == orders[0]
    assert len({tuple(each) for each in orders}) == 3
    assert all(sorted(each) == list(range(100)) for each in orders)


@pytest.mark.parametrize(("epochs", "max_steps", "steps"), [(2, None, 8), (2, 6, 6), (2, 100, 8)])
def test_the_step_size_falls_linearly_over_all_steps(
    dataset: Dataset, epochs: int, max_steps: int | None, steps: int
) -> None:
    engine = RecordingEngine(SPEC, batch_size=10)

    train(engine, dataset, epochs=epochs, max_steps=max_steps, seed=0)

    assert engine.scales == pytest.approx([1 - step / steps for step in range(steps)])


def test_callbacks_see_every_step_and_every_epoch(dataset: Dataset) -> None:
    steps: list[tuple[int, int, float]] = []
    epochs: list[EpochResult] = []

    result = train(
        Engine(SPEC, batch_size=10),
        dataset,
        epochs=3,
        max_steps=6,
        seed=0,
        on_step=lambda *step: steps.append(step),
        on_epoch=epochs.append,
    )

    assert [step[:2] for step in steps] == [(done, 6) for done in range(1, 7)]
    assert [(epoch.number, epoch.steps) for epoch in epochs] == [(1, 4), (2, 2)]
    assert epochs[1].loss == pytest.approx(statistics.mean(loss for _, _, loss in steps[4:]))
    assert result.epochs == tuple(epochs)
    assert result.step_ms_median is not None
    assert 0 < result.step_ms_median < 1e3


def test_no_step_is_a_result_too(dataset: Dataset) -> None:
    engine = Engine(SPEC, batch_size=10)

    result = train(engine, dataset, epochs=3, max_steps=0, seed=0)

    assert (result.epochs, result.steps, result.step_ms_median) == ((), 0, None)
    assert engine.steps_done == 0


def test_the_seed_decides_the_weights(dataset: Dataset) -> None:
    def digest(seed: int, threads: int) -> str:
        engine = Engine(SPEC, batch_size=10, seed=seed, threads=threads)
        train(engine, dataset, epochs=2, seed=seed)
        return weights_digest(SPEC, engine.state())

    assert digest(5, 1) == digest(5, 2)
    assert digest(5, 1) != digest(6, 1)


def test_too_few_samples_for_a_batch_are_refused(dataset: Dataset) -> None:
    with pytest.raises(DataError, match=r"48 samples, the data set only 47\. Give --batch-size 47"):
        train(Engine(SPEC, batch_size=48), dataset, epochs=1, seed=0)


@pytest.mark.parametrize("spec", [mlp((4, 5), (16,), 3), mlp((4, 4), (16,), 2)])
def test_data_that_do_not_fit_the_network_are_refused(dataset: Dataset, spec: object) -> None:
    engine = Engine(spec, batch_size=10)  # type: ignore[arg-type]

    for act in (lambda: train(engine, dataset, epochs=1, seed=0), lambda: evaluate(engine, dataset)):
        with pytest.raises(ShapeError, match="Choose the data set"):
            act()

"""Training and evaluating one network on one data set: the loop around the engine.

The loop streams each batch from the disk into the engine's memory and allocates next to nothing itself: one shuffled
order an epoch (4 bytes a sample) and 8 bytes a step for the times.
"""

from __future__ import annotations

import statistics
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnncore.data.augment import Augmentation, Augmenter
from bnncore.data.dataset import Dataset
from bnncore.engine import Engine, permutation
from bnncore.errors import DataError, ShapeError
from bnncore.schedule import Linear, Schedule

__all__ = ["EpochResult", "EvalResult", "TrainResult", "batches", "check_fits", "evaluate", "train"]


@dataclass(frozen=True)
class EpochResult:
    """One pass over the training data, perhaps cut short.

    Attributes:
      number: counted from 1.
      steps: steps done in it.
      loss: mean training loss, nats.
      accuracy: percent of the training samples that were classified right while they were trained on.
      seconds: wall time.
    """

    number: int
    steps: int
    loss: float
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class TrainResult:
    """What ``train`` did; ``step_ms_median`` is None when it did no step. Reading data is not part of a step."""

    epochs: tuple[EpochResult, ...]
    steps: int
    step_ms_median: float | None


@dataclass(frozen=True)
class EvalResult:
    """Accuracy in percent and mean loss in nats over ``count`` samples."""

    accuracy: float
    loss: float
    count: int


def batches(num_examples: int, batch_size: int, *, seed: int, epoch: int) -> Iterator[NDArray[np.uint32]]:
    """Cut one epoch's shuffled order into full batches; the samples left over at the end wait for another epoch.

    Args:
      num_examples: samples in the data set.
      batch_size: samples a batch.
      seed: with ``epoch`` (counted from 0), decides the order.
      epoch: see ``seed``.

    Yields:
      uint32 [batch_size]: which samples to read.
    """
    order = permutation(num_examples, seed, epoch)
    for start in range(0, num_examples - batch_size + 1, batch_size):
        yield order[start : start + batch_size]


def train(
    engine: Engine,
    dataset: Dataset,
    *,
    epochs: int,
    max_steps: int | None = None,
    seed: int,
    augment: Augmentation | None = None,
    schedule: Schedule | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
    on_epoch: Callable[[EpochResult], None] | None = None,
) -> TrainResult:
    """Train for some epochs.

    Args:
      engine: what is trained, from its state as it is.
      dataset: training samples.
      epochs: passes over the data.
      max_steps: stop after so many steps; they are what the schedule runs over.
      seed: decides the order of the samples, and what augmentation does to each.
      augment: shifts and mirrors the images of each batch; None: they are trained on as they are.
      schedule: how the step size changes, fresh; None: it falls linearly from its full value to almost nothing.
      on_step: called after each step with (steps done, steps to do, loss).
      on_epoch: called after each epoch, the last one too when it was cut short; may evaluate the engine.

    Raises:
      ShapeError: samples or classes do not fit the network.
      DataError: there are fewer samples than one batch, they cannot be read, or they are no images to augment.
    """
    check_fits(engine, dataset)
    schedule = Linear() if schedule is None else schedule
    augmenter = None if augment is None else _augmenter(augment, engine, dataset, seed)
    steps_per_epoch = dataset.num_examples // engine.batch_size
    if steps_per_epoch == 0:
        raise DataError(
            f"a batch has {engine.batch_size} samples, the data set only {dataset.num_examples}. "
            f"Give --batch-size {dataset.num_examples} or less"
        )
    total = epochs * steps_per_epoch if max_steps is None else min(max_steps, epochs * steps_per_epoch)
    times_ms = array("d", bytes(8 * total))
    done = 0
    results: list[EpochResult] = []
    while done < total:
        started, first, loss_sum, correct = time.perf_counter(), done, 0.0, 0
        for indices in batches(dataset.num_examples, engine.batch_size, seed=seed, epoch=len(results)):
            dataset.read(indices, engine.input)
            if augmenter is not None:
                augmenter.apply(engine.input, indices, len(results))
            engine.labels[:] = dataset.labels[indices]
            before = time.perf_counter()
            step = engine.step(schedule.scale(done, total))
            times_ms[done] = 1e3 * (time.perf_counter() - before)
            done += 1
            loss_sum += step.loss
            correct += step.correct
            if on_step is not None:
                on_step(done, total, step.loss)
            if done == total:
                break
        steps = done - first
        accuracy = 100.0 * correct / (steps * engine.batch_size)
        results.append(EpochResult(len(results) + 1, steps, loss_sum / steps, accuracy, time.perf_counter() - started))
        schedule.end_epoch(results[-1].loss)
        if on_epoch is not None:
            on_epoch(results[-1])
    return TrainResult(tuple(results), done, statistics.median(times_ms) if done else None)


def _augmenter(augment: Augmentation, engine: Engine, dataset: Dataset, seed: int) -> Augmenter:
    if dataset.description.get("kind") == "signals":  # its second dimension is no place to shift or mirror along
        raise DataError(f"augmentation is for images, data set {dataset.name!r} holds signals. Leave --augment out")
    return Augmenter(augment, dataset.input_shape, batch_size=engine.batch_size, seed=seed)


def evaluate(engine: Engine, dataset: Dataset) -> EvalResult:
    """Classify a whole data set with the running statistics; the model is not changed.

    Raises:
      ShapeError: samples or classes do not fit the network.
      DataError: the samples cannot be read.
    """
    check_fits(engine, dataset)
    loss_sum, correct = 0.0, 0
    for start in range(0, dataset.num_examples, engine.batch_size):
        indices = np.arange(start, min(start + engine.batch_size, dataset.num_examples), dtype=np.uint32)
        count = len(indices)
        dataset.read(indices, engine.input[:count])
        engine.labels[:count] = dataset.labels[indices]
        batch = engine.evaluate_batch(count)
        loss_sum += batch.loss * count
        correct += batch.correct
    return EvalResult(100.0 * correct / dataset.num_examples, loss_sum / dataset.num_examples, dataset.num_examples)


def check_fits(engine: Engine, dataset: Dataset) -> None:
    """Check that a data set's samples and classes fit a network.

    Raises:
      ShapeError: they do not; the message says which shape or number each side has.
    """
    spec = engine.spec
    if dataset.rows.row_bytes != spec.input_features or len(dataset.classes) > spec.classes:
        raise ShapeError(
            f"model {spec.name!r} takes samples of shape {list(spec.input_shape)} and tells {spec.classes} classes "
            f"apart, data set {dataset.name!r} has shape {list(dataset.input_shape)} and {len(dataset.classes)} "
            "classes. Choose the data set that the model was made for"
        )

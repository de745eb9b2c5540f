"""Training and evaluating one network on one data set: the loop around the engine.

The loop streams each batch from the disk into the engine's memory and allocates next to nothing itself: one shuffled
order an epoch (4 bytes a sample) and 8 bytes a step for the times.
"""

from __future__ import annotations

import statistics
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bnncore.curves import plot_curves
from bnncore.data.augment import Augmentation, Augmenter
from bnncore.data.dataset import Dataset
from bnncore.engine import Engine, permutation
from bnncore.errors import ConfigurationError, DataError, ShapeError
from bnncore.evaluator import Evaluator
from bnncore.schedule import Linear, Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "STATISTICS_BATCHES",
    "EpochResult",
    "EvalResult",
    "Evaluator",
    "Progress",
    "TrainResult",
    "batches",
    "check_fits",
    "evaluate",
    "observe",
    "train",
]

STATISTICS_BATCHES = 50
"""Batches that batch norm's statistics are taken anew from after an epoch."""


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


@dataclass
class Progress:
    """How far a run has come; with the engine's state, all that it needs to go on.

    Attributes:
      steps: steps done.
      epochs: epochs ended.
      loss_sum, correct, seconds: of the steps since the last of them.
      schedule: what the schedule has noted.
      notes: JSON values that the caller wants to have back.
    """

    steps: int = 0
    epochs: list[EpochResult] = field(default_factory=list)
    loss_sum: float = 0.0
    correct: int = 0
    seconds: float = 0.0
    schedule: list[float] = field(default_factory=list)
    notes: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class TrainResult:
    """What ``train`` did; ``step_ms_median`` is None when it did no step. Reading data is not part of a step."""

    epochs: tuple[EpochResult, ...]
    steps: int
    step_ms_median: float | None

    def to_dict(self) -> dict[str, list[Any]]:
        """Return the epochs as columns: ``pandas.DataFrame(result.to_dict()).set_index("epoch")``."""
        columns = {"epoch": "number", "loss": "loss", "accuracy": "accuracy", "seconds": "seconds"}
        return {column: [getattr(epoch, name) for epoch in self.epochs] for column, name in columns.items()}

    def plot(self, column: str = "loss", *, label: str | None = None, axes: Axes | None = None) -> Axes:
        """Draw the training loss or accuracy over epochs; needs matplotlib (``pip install 'bitfleet[plot]'``).

        Args:
          column: ``loss`` (nats), ``accuracy`` (percent of the training samples) or ``seconds``.
          label: in the legend; None: the column's name.
          axes: where to draw, such as what an earlier ``plot`` returned; None: a new figure.

        Raises:
          ConfigurationError: matplotlib is missing, or there is no such column or no epoch.
        """
        units = {"loss": "nats", "accuracy": "%", "seconds": "s"}
        if column not in units:
            raise ConfigurationError(f"columns to draw are {', '.join(units)}, not {column!r}")
        table, name = self.to_dict(), f"training {column}"
        return plot_curves(
            table["epoch"],
            {label or name: table[column]},
            x_label="epoch",
            y_label=f"{name}, {units[column]}",
            axes=axes,
        )


@dataclass(frozen=True)
class EvalResult:
    """Accuracy in percent and mean loss in nats over ``count`` samples, ``correct`` of which were classified right."""

    accuracy: float
    loss: float
    count: int
    correct: int


def batches(num_examples: int, batch_size: int, *, seed: int, epoch: int) -> NDArray[np.uint32]:
    """Cut one epoch's shuffled order into full batches; the samples left over at the end wait for another epoch.

    Args:
      num_examples: samples in the data set.
      batch_size: samples a batch.
      seed: with ``epoch`` (counted from 0), decides the order.
      epoch: see ``seed``.

    Returns:
      uint32 [batches, batch_size]: which samples to read.
    """
    count = num_examples // batch_size
    return permutation(num_examples, seed, epoch)[: count * batch_size].reshape(count, batch_size)


def train(
    engine: Engine,
    dataset: Dataset,
    *,
    epochs: int,
    max_steps: int | None = None,
    seed: int,
    augment: Augmentation | None = None,
    schedule: Schedule | None = None,
    progress: Progress | None = None,
    statistics_batches: int = STATISTICS_BATCHES,
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
      progress: where to go on, with the engine in its state of then; brought up to date after every step, before
        ``on_step`` is called, so that a run may be saved or stopped (by an exception) there.
      statistics_batches: batches that batch norm's statistics are taken anew from at the end of an epoch, before
        ``on_epoch`` (see ``observe``); 0 leaves the running ones. They do not change what is trained.
      on_step: called after each step with (steps done, steps to do, loss).
      on_epoch: called after each epoch, the last one too when it was cut short; may evaluate the engine.

    Raises:
      ShapeError: samples or classes do not fit the network.
      DataError: there are fewer samples than one batch, they cannot be read, or they are no images to augment.
    """
    check_fits(engine, dataset)
    schedule = Linear() if schedule is None else schedule
    augmenter = None if augment is None else _augmenter(augment, engine, dataset, seed)
    steps_per_epoch = _steps_per_epoch(engine, dataset)
    total = epochs * steps_per_epoch if max_steps is None else min(max_steps, epochs * steps_per_epoch)
    progress = Progress() if progress is None else progress
    if progress.schedule:
        schedule.recall(progress.schedule)
    times_ms = array("d")
    # A run that was stopped after its last step has all its steps, but its last epoch has not ended yet.
    while sum(ended.steps for ended in progress.epochs) < total:
        epoch = len(progress.epochs)
        first, last = progress.steps - epoch * steps_per_epoch, total - epoch * steps_per_epoch
        for indices in batches(dataset.num_examples, engine.batch_size, seed=seed, epoch=epoch)[first:last]:
            started = time.perf_counter()
            _read_batch(engine, dataset, indices, epoch, augmenter)
            before = time.perf_counter()
            step = engine.step(schedule.scale(progress.steps, total))
            now = time.perf_counter()
            times_ms.append(1e3 * (now - before))
            progress.steps += 1
            progress.loss_sum += step.loss
            progress.correct += step.correct
            progress.seconds += now - started
            if on_step is not None:
                on_step(progress.steps, total, step.loss)
        steps = progress.steps - epoch * steps_per_epoch
        accuracy = 100.0 * progress.correct / (steps * engine.batch_size)
        result = EpochResult(epoch + 1, steps, progress.loss_sum / steps, accuracy, progress.seconds)
        progress.epochs.append(result)
        progress.loss_sum, progress.correct, progress.seconds = 0.0, 0, 0.0
        schedule.end_epoch(result.loss)
        progress.schedule = schedule.memory()
        if statistics_batches > 0:
            _observe(engine, dataset, min(statistics_batches, steps_per_epoch), seed, epoch, augmenter)
        if on_epoch is not None:
            on_epoch(result)
    return TrainResult(tuple(progress.epochs), progress.steps, statistics.median(times_ms) if times_ms else None)


def observe(engine: Engine, dataset: Dataset, *, num_batches: int = STATISTICS_BATCHES, seed: int) -> None:
    """Take batch norm's statistics anew: the mean over some batches of the network as it is. Nothing else changes.

    Running statistics are means over steps in which the weights moved on, so they lag behind: by much where many
    weights flip in a step, or where the model was merged or converted.

    Args:
      engine: whose statistics are replaced.
      dataset: training samples.
      num_batches: fewer are taken where the data set has not as many.
      seed: decides which.

    Raises:
      ShapeError: samples or classes do not fit the network.
      DataError: there are fewer samples than one batch, or they cannot be read.
    """
    check_fits(engine, dataset)
    _steps_per_epoch(engine, dataset)
    _observe(engine, dataset, num_batches, seed, 0, None)


def _observe(
    engine: Engine, dataset: Dataset, num_batches: int, seed: int, epoch: int, augmenter: Augmenter | None
) -> None:
    some = batches(dataset.num_examples, engine.batch_size, seed=seed, epoch=epoch)[:num_batches]
    for number, indices in enumerate(some):
        _read_batch(engine, dataset, indices, epoch, augmenter)
        engine.observe(number)


def _read_batch(
    engine: Engine, dataset: Dataset, indices: NDArray[np.uint32], epoch: int, augmenter: Augmenter | None
) -> None:
    dataset.read(indices, engine.input)
    if augmenter is not None:
        augmenter.apply(engine.input, indices, epoch)
    engine.labels[:] = dataset.labels[indices]


def _steps_per_epoch(engine: Engine, dataset: Dataset) -> int:
    steps = dataset.num_examples // engine.batch_size
    if steps == 0:
        raise DataError(
            f"a batch has {engine.batch_size} samples, the data set only {dataset.num_examples}. "
            f"Give --batch-size {dataset.num_examples} or less"
        )
    return steps


def _augmenter(augment: Augmentation, engine: Engine, dataset: Dataset, seed: int) -> Augmenter:
    if dataset.description.get("kind") == "signals":  # its second dimension is no place to shift or mirror along
        raise DataError(f"augmentation is for images, data set {dataset.name!r} holds signals. Leave --augment out")
    return Augmenter(augment, dataset.input_shape, batch_size=engine.batch_size, seed=seed)


def evaluate(
    engine: Evaluator,
    dataset: Dataset,
    *,
    labels: NDArray[np.int32] | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> EvalResult:
    """Classify a whole data set with the running statistics; the model is not changed.

    Args:
      engine: what classifies.
      dataset: the samples.
      labels: int32 [num_examples], what the network calls each sample's class; None: as the data set does.
      on_batch: called after each batch with (samples done, samples to do).

    Raises:
      ShapeError: samples or classes do not fit the network.
      DataError: the samples cannot be read.
    """
    check_fits(engine, dataset)
    numbers: NDArray[Any] = dataset.labels if labels is None else labels
    loss_sum, correct = 0.0, 0
    for start in range(0, dataset.num_examples, engine.batch_size):
        indices = np.arange(start, min(start + engine.batch_size, dataset.num_examples), dtype=np.uint32)
        count = len(indices)
        dataset.read(indices, engine.input[:count])
        engine.labels[:count] = numbers[indices]
        batch = engine.evaluate_batch(count)
        loss_sum += batch.loss * count
        correct += batch.correct
        if on_batch is not None:
            on_batch(start + count, dataset.num_examples)
    total = dataset.num_examples
    return EvalResult(100.0 * correct / total, loss_sum / total, total, correct)


def check_fits(engine: Evaluator, dataset: Dataset) -> None:
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

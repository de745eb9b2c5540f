"""Training on the device's own data for some minutes, without a coordinator."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.checkpoint import save_checkpoint
from bnncore.data import Dataset, InputRange, open_for_job, survey_data
from bnncore.engine import Engine
from bnncore.errors import BudgetError, DataError
from bnncore.evaluator import Evaluator
from bnncore.federated.validation import parts_of
from bnncore.optimizer import resolve_preset
from bnncore.plan import plan_memory
from bnncore.schedule import Linear
from bnncore.spec import ModelSpec
from bnncore.training import observe, train
from bnncore.zoo import build
from edge_client.local.confusion import confusion_of

__all__ = ["Trial", "default_model", "run_trial"]

HELD_OUT = 0.2
"""Part of the data that is not trained on, where the data have no test split."""

MOST_EPOCHS = 50
"""Small data are learnt by heart after so many passes."""

_MOST_AT_ONCE = 50
_SEED = 0


@dataclass(frozen=True)
class Trial:
    """What a trial came to.

    Attributes:
      spec: the network.
      classes: names, in the order of the network's classes.
      confusion: int64 [classes, classes] over the held-out part; rows are the truth.
      examples: that were trained on.
      steps: that were done, of ``batch_size`` samples each.
      step_ms: median.
      plan_bytes: of memory for the training itself.
    """

    spec: ModelSpec
    classes: tuple[str, ...]
    confusion: NDArray[np.int64]
    examples: int
    batch_size: int
    steps: int
    step_ms: float
    plan_bytes: int

    @property
    def held_out(self) -> int:
        """Samples that were not trained on."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Percent of those that are classified right."""
        return 100.0 * int(np.diagonal(self.confusion).sum()) / self.held_out

    @property
    def by_chance(self) -> float:
        """Percent that are right when the commonest class is told of all."""
        return 100.0 * int(self.confusion.sum(axis=1).max()) / self.held_out


class _TimeUpError(Exception):
    """The minutes are over."""


class _Timed(Linear):
    """Falls with the steps or with the time, whichever is further on."""

    def __init__(self, seconds: float) -> None:
        self._began = time.monotonic()
        self._seconds = seconds

    @property
    def gone(self) -> float:
        """Part of the time that is over."""
        return (time.monotonic() - self._began) / self._seconds

    def scale(self, done: int, total: int) -> float:
        """See ``bnncore.schedule.Schedule``."""
        return max(0.0, min(super().scale(done, total), 1.0 - self.gone))


def run_trial(
    name: str | None,
    root: Path | None,
    *,
    model: str | None,
    seconds: float,
    threads: int,
    max_memory: int,
    input_range: InputRange | None,
    keep: Path,
    on_progress: Callable[[float, float], None],
) -> Trial:
    """Train, test and keep the model.

    Args:
      name: the data set's layout; None: detected.
      root: the data folder.
      model: a name of the zoo; None: what suits the samples.
      seconds: to train at most.
      threads: of a step.
      max_memory: bytes that the training itself may take.
      input_range: by which real numbers become the network's input; None: what they lie in.
      keep: the file for the model.
      on_progress: called after a step with (part that is done, loss in nats).

    Raises:
      DataError: the data cannot be read, or are too few.
      BudgetError: the network takes more memory.
      SpecError: the network does not read such samples.
    """
    survey = survey_data(name, root)
    input_range = input_range or survey.own_range
    classes = survey.classes
    spec = build(model or default_model(survey.input_shape), input_shape=survey.input_shape, classes=len(classes))
    with _parts(name, root, spec, input_range) as (seen, held_out):
        batch_size = max(1, min(_MOST_AT_ONCE, seen.num_examples // 4))
        preset = resolve_preset("bitfleet", None)
        needed = plan_memory(spec, batch_size=batch_size, preset=preset, threads=threads).peak_bytes
        if needed > max_memory:
            raise BudgetError(
                f"model {spec.name!r} takes {needed / 2**20:.1f} MiB to train here, {max_memory / 2**20:.1f} MiB may "
                "be taken. Choose a smaller one with --model, such as mlp"
            )
        engine = Engine(spec, batch_size=batch_size, preset=preset, seed=_SEED, threads=threads)
        times_ms = _train(engine, seen, seconds, on_progress)
        confusion = _test(engine, held_out, len(classes))
        trial = Trial(
            spec,
            classes,
            confusion,
            seen.num_examples,
            batch_size,
            len(times_ms),
            float(np.median(times_ms)),
            engine.plan.peak_bytes,
        )
        keep.parent.mkdir(parents=True, exist_ok=True)
        extra = {
            "classes": list(classes),
            "accuracy": trial.accuracy,
            "validation_examples": trial.held_out,
            "input_range": None if input_range is None else input_range.to_dict(),
        }
        save_checkpoint(keep, spec, engine.state(copy=False), extra=extra)
    return trial


def default_model(input_shape: tuple[int, ...]) -> str:
    """Name a network of the zoo that reads such samples and is small."""
    if len(input_shape) == 3 and input_shape[2] == 3 and min(input_shape[:2]) >= 32:
        return "cnv"
    return "mlp"


@contextlib.contextmanager
def _parts(
    name: str | None, root: Path | None, spec: ModelSpec, input_range: InputRange | None
) -> Iterator[tuple[Dataset, Dataset]]:
    """Open what is trained on and what is held out: the data's own test split, else a part of them."""
    form: dict[str, Any] = {"input_shape": spec.input_shape, "input_range": input_range}
    with contextlib.ExitStack() as stack:
        train_set = stack.enter_context(open_for_job(name, root, split="train", **form))
        own_test = None
        with contextlib.suppress(DataError):
            own_test = stack.enter_context(open_for_job(name, root, split="test", **form))
        if own_test is None:
            seen, held_out = stack.enter_context(parts_of(train_set, HELD_OUT, "trial"))
        else:
            seen, held_out = train_set, own_test
        if held_out is None:
            raise DataError(
                f"there are {train_set.num_examples} samples, too few to hold some out for the test. Add some"
            )
        yield seen, held_out


def _train(
    engine: Engine, dataset: Dataset, seconds: float, on_progress: Callable[[float, float], None]
) -> list[float]:
    """Train until the time or the data are used up; returns each step's milliseconds."""
    schedule = _Timed(seconds)
    times_ms: list[float] = []
    before = time.perf_counter()

    def on_step(done: int, total: int, loss: float) -> None:
        nonlocal before
        now = time.perf_counter()
        times_ms.append(1e3 * (now - before))
        before = now
        on_progress(max(done / total, min(schedule.gone, 1.0)), loss)
        if schedule.gone >= 1:
            raise _TimeUpError

    with contextlib.suppress(_TimeUpError):
        train(
            engine,
            dataset,
            epochs=MOST_EPOCHS,
            seed=_SEED,
            schedule=schedule,
            statistics_batches=0,
            on_step=on_step,
        )
    observe(engine, dataset, seed=_SEED)
    return times_ms


def _test(engine: Evaluator, dataset: Dataset, classes: int) -> NDArray[np.int64]:
    confusion = np.zeros((classes, classes), np.int64)
    for start in range(0, dataset.num_examples, engine.batch_size):
        indices = np.arange(start, min(start + engine.batch_size, dataset.num_examples), dtype=np.uint32)
        dataset.read(indices, engine.input[: len(indices)])
        told = engine.predict_batch(len(indices))
        confusion += confusion_of(dataset.labels[indices].astype(np.int32), told, classes)
    return confusion

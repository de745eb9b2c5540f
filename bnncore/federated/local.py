"""Local training: bring a task's model up, train it on the device's own data, encode what was learnt.

The update is a function of (model, data, task, device id) alone: the same task trained twice gives the same bytes, on
a device or in a simulation, in an engine of its own or in one that served another task before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.codec import get_state_codec, payload_digest
from bnncore.data import Dataset
from bnncore.engine import Engine, permutation
from bnncore.errors import ModelMissingError, TaskDeclinedError, TaskFailedError
from bnncore.federated.proximal import ProximalPull
from bnncore.optimizer import resolve_preset
from bnncore.seeds import derive_seed
from bnncore.spec import ModelSpec

__all__ = [
    "EngineShelf",
    "LocalTask",
    "LocalTraining",
    "LocalUpdate",
    "labels_in_job",
    "load_model",
    "run_steps",
    "train_locally",
]

OnStep = Callable[[int, int], None]
"""Told (steps done, steps to do) after every step."""


@dataclass(frozen=True)
class LocalTraining:
    """How to train locally; the fields are those of the wire's ``TrainingConfig``."""

    preset: str
    optimizer: str
    """Empty: the preset's own."""
    batch_size: int
    local_steps: int
    step_scale: float
    seed: int
    proximal_mu: float = 0.0
    """Strength of the pull to the task's model after every step; 0: none."""

    def __post_init__(self) -> None:
        if self.local_steps < 1 or self.batch_size < 1 or not math.isfinite(self.step_scale):
            raise TaskFailedError(f"local_steps and batch_size must be at least 1, step_scale finite; got {self}")


@dataclass(frozen=True)
class LocalTask:
    """One round's work for one device."""

    device_id: str
    round_number: int
    model_digest: str
    initial_seed: int
    """From which the model can be made when its payload is not at hand."""
    spec_json: str
    down_codec: str
    up_codec: str
    classes: tuple[str, ...]
    """The job's, in the order of its label numbers."""
    training: LocalTraining

    @property
    def seed(self) -> int:
        """The device's own seed in this round: order of the samples, rounding."""
        return derive_seed(self.training.seed, self.round_number, self.device_id)


@dataclass(frozen=True)
class LocalUpdate:
    """What one task came to."""

    payload: bytes
    num_examples: int
    steps: int
    loss: float
    """Mean over the local steps, nats."""
    accuracy: float
    """Mean over the local steps, 0 to 1."""
    training_seconds: float
    """Of the local steps alone."""


class EngineShelf:
    """Keeps one engine between tasks, so that a worker does not lay out its memory anew for each.

    Args:
      threads: of a step.
    """

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._key: tuple[str, int, str, str] | None = None
        self._engine: Engine | None = None

    def take(self, spec: ModelSpec, training: LocalTraining, batch_size: int) -> Engine:
        """Give an engine for a task; its parameters are of no task until a state is loaded."""
        key = (spec.digest, batch_size, training.preset, training.optimizer)
        if self._engine is None or key != self._key:
            self._engine = None  # goes before its successor comes
            preset = resolve_preset(training.preset, training.optimizer or None)
            self._engine = Engine(spec, batch_size=batch_size, preset=preset, threads=self._threads)
            self._key = key
        return self._engine


def train_locally(
    task: LocalTask, model: bytes | None, dataset: Dataset, shelf: EngineShelf, on_step: OnStep | None = None
) -> LocalUpdate:
    """Train one task and encode its update.

    Args:
      task: what to do.
      model: the payload that the task's digest names; None: it is made from the job's seed.
      dataset: the device's own training samples.
      shelf: where the engine comes from.
      on_step: told how far it is.

    Raises:
      TaskDeclinedError: the job does not fit the data here.
      ModelMissingError: the model is not here and cannot be made from the seed.
      BitfleetError: the data, the network, the optimizer or the payload is not usable.
    """
    spec, training = ModelSpec.from_json(task.spec_json), task.training
    job_labels = labels_in_job(spec, dataset, task.classes)
    engine = shelf.take(spec, training, min(training.batch_size, dataset.num_examples))
    load_model(engine, spec, task, model)
    began = time.monotonic()
    loss, accuracy = run_steps(engine, dataset, job_labels, task, on_step)
    training_seconds = time.monotonic() - began
    payload = get_state_codec(task.up_codec).encode(spec, engine.state(copy=False), kind="update")
    return LocalUpdate(payload, dataset.num_examples, training.local_steps, loss, accuracy, training_seconds)


def labels_in_job(spec: ModelSpec, dataset: Dataset, job_classes: tuple[str, ...]) -> NDArray[np.int32]:
    """Map the device's labels onto the job's by class name.

    Returns:
      int32 [num_examples]: the job's label number of each example.

    Raises:
      TaskDeclinedError: the samples have another shape than the network's input, or a class of the device is none
        of the job's; the classes are listed.
    """
    if dataset.input_shape != spec.input_shape:
        raise TaskDeclinedError(
            f"the network reads samples of shape {list(spec.input_shape)}, "
            f"the device's have shape {list(dataset.input_shape)}"
        )
    unknown = [name for name in dataset.classes if name not in job_classes]
    if unknown:
        raise TaskDeclinedError(f"the device has classes that the job does not name: {', '.join(unknown)}")
    numbers = np.array([job_classes.index(name) for name in dataset.classes], dtype=np.int32)
    return numbers[dataset.labels]


def load_model(engine: Engine, spec: ModelSpec, task: LocalTask, payload: bytes | None) -> None:
    """Bring the engine to the model that the task names: from its payload, else from the job's seed.

    Both ways end in the same state, its randomness drawn from ``task.seed``, the device's own.

    Raises:
      ModelMissingError: neither gives the bytes that the task's digest names.
      PayloadError: the payload is no model of this network.
    """
    codec = get_state_codec(task.down_codec)
    where = "the cached payload"
    if payload is None:
        engine.initialise(task.initial_seed)
        payload = codec.encode(spec, engine.state(copy=False), kind="model")
        where = "the model made from the seed"
    if payload_digest(payload) != task.model_digest:
        raise ModelMissingError(f"{where} does not have the digest that the task names")
    engine.seed = task.seed  # making the model drew from the job's seed
    engine.load_state(codec.decode(spec, payload, kind="model"))


def run_steps(
    engine: Engine,
    dataset: Dataset,
    job_labels: NDArray[Any],
    task: LocalTask,
    on_step: OnStep | None = None,
) -> tuple[float, float]:
    """Do the local steps: epochs of full batches, each in an order of its own.

    Returns:
      Mean loss (nats) and accuracy (0 to 1) over the steps.
    """
    batch_size = len(engine.labels)
    total = task.training.local_steps
    steps_an_epoch = dataset.num_examples // batch_size
    mu = task.training.proximal_mu
    proximal = ProximalPull(engine, mu, task.seed) if mu > 0 else None
    loss, correct = 0.0, 0
    for step in range(total):
        epoch, position = divmod(step, steps_an_epoch)
        if position == 0:
            order = permutation(dataset.num_examples, task.seed, epoch)
        batch = order[position * batch_size : (position + 1) * batch_size]
        dataset.read(batch, engine.input)
        engine.labels[:] = job_labels[batch]
        result = engine.step(task.training.step_scale)
        if proximal is not None:
            proximal.pull(step, task.training.step_scale)
        loss += result.loss
        correct += result.correct
        if on_step is not None:
            on_step(step + 1, total)
    return loss / total, correct / (total * batch_size)

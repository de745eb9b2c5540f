"""Local training: bring a task's model up, train it on the device's own data, encode what was learnt.

The update is a function of (model, data, task, device id) alone, and of what the last one could not say where the
codec writes differences: the same task trained twice gives the same bytes, on a device or in a simulation, in an engine
of its own or in one that served another task before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.codec import StateCodec, get_codec, get_state_codec, payload_digest
from bnncore.data import Dataset
from bnncore.engine import Engine, permutation
from bnncore.errors import BitfleetError, ModelMissingError, TaskDeclinedError, TaskFailedError
from bnncore.federated.feedback import tell_difference
from bnncore.federated.local_state import LocalState, own_tensors, with_own_tensors
from bnncore.federated.proximal import ProximalPull
from bnncore.federated.replica import follow_steps, model_codec
from bnncore.federated.summed import SummedUpdates, metrics_of, tell_whole
from bnncore.federated.validation import LocalScore, parts_of
from bnncore.optimizer import resolve_preset
from bnncore.secure.metrics import Metrics
from bnncore.seeds import derive_seed
from bnncore.spec import ModelSpec
from bnncore.state import State
from bnncore.training import evaluate

__all__ = [
    "EngineShelf",
    "LocalTask",
    "LocalTraining",
    "LocalUpdate",
    "labels_in_job",
    "load_model",
    "run_steps",
    "take_statistics",
    "train_locally",
]

OnStep = Callable[[int, int], None]
"""Told (steps done, steps to do) after every step."""

OnScore = Callable[[LocalScore, State], None]
"""Told how the task's model does on the device's validation part, and its state: views that training then changes."""


@dataclass(frozen=True)
class LocalTraining:
    """How to train locally; the fields are those of the wire's ``TrainingConfig``."""

    preset: str
    optimizer: str
    """Empty: the preset's own."""
    batch_size: int
    local_steps: int
    """0: nothing is trained, the update holds statistics alone."""
    step_scale: float
    seed: int
    proximal_mu: float = 0.0
    """Strength of the pull to the task's model after every step; 0: none."""
    statistics_batches: int = 0
    """Batches on which statistics of the task's model are taken, which then travel; 0: the running ones of training."""
    local_validation: float = 0.0
    """Part of the device's data that is not trained on, but on which the task's model is evaluated; 0: none."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not math.isfinite(self.step_scale):
            raise TaskFailedError(f"batch_size must be at least 1 and step_scale finite; got {self}")
        if self.local_steps < (0 if self.statistics_batches > 0 else 1) or self.statistics_batches < 0:
            raise TaskFailedError(f"there must be local_steps, or statistics_batches without them; got {self}")
        if not 0 <= self.local_validation < 1 or (self.local_validation > 0 and self.statistics_batches == 0):
            raise TaskFailedError(f"local_validation must be in [0, 1), and needs statistics_batches; got {self}")


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
    local_tensors: frozenset[str] = frozenset()
    """Names of the tensors that stay on the device."""
    summed: SummedUpdates | None = None
    """Set where updates are added up under masks: the update is a vector of whole numbers then, and stays here."""

    @property
    def seed(self) -> int:
        """The device's own seed in this round: order of the samples, rounding."""
        return derive_seed(self.training.seed, self.round_number, self.device_id)


@dataclass(frozen=True)
class LocalUpdate:
    """What one task came to."""

    payload: bytes
    """Of the task's ``up_codec``; where updates are added up under masks a ``Vector``, which nobody else may see."""
    num_examples: int
    """That were trained on."""
    steps: int
    loss: float
    """Mean over the local steps, nats."""
    accuracy: float
    """Mean over the local steps, 0 to 1."""
    training_seconds: float
    """Of the local steps alone."""
    score: LocalScore | None = None
    """Of the task's model on the device's validation part; None: the device has none."""
    model: bytes | memoryview | None = None
    """Payload of the task's model, when it was made by steps: worth keeping."""
    local_state: LocalState | None = None
    """For this job's next task, once the update is accepted; None where the device keeps nothing."""
    training_began: float = 0.0
    """When the local steps began, by the monotonic clock, which all processes of a machine share."""


class EngineShelf:
    """Keeps one engine between tasks, so that a worker does not lay out its memory anew for each.

    Args:
      threads: of a step.
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self._key: tuple[str, int, str, str] | None = None
        self._engine: Engine | None = None

    def take(self, spec: ModelSpec, training: LocalTraining, batch_size: int) -> Engine:
        """Give an engine for a task; its parameters are of no task until a state is loaded."""
        key = (spec.digest, batch_size, training.preset, training.optimizer)
        if self._engine is None or key != self._key:
            self._engine = None  # goes before its successor comes
            preset = resolve_preset(training.preset, training.optimizer or None)
            self._engine = Engine(spec, batch_size=batch_size, preset=preset, threads=self.threads)
            self._key = key
        return self._engine


def train_locally(
    task: LocalTask,
    model: bytes | memoryview | None,
    dataset: Dataset,
    shelf: EngineShelf,
    on_step: OnStep | None = None,
    *,
    steps: Sequence[bytes | memoryview] = (),
    local_state: LocalState | None = None,
    on_score: OnScore | None = None,
) -> LocalUpdate:
    """Evaluate one task's model, train it and encode the update.

    Args:
      task: what to do.
      model: the payload that the task's digest names, or that of an older model; None: it is made from the job's seed.
      dataset: the device's own training samples.
      shelf: where the engine comes from.
      on_step: told how far it is.
      steps: payloads of the steps that lead from ``model`` to the task's.
      local_state: of this job's last accepted update.
      on_score: told how the task's model does, before it is trained.

    Raises:
      TaskDeclinedError: the job does not fit the data here.
      ModelMissingError: the model is not here and cannot be made from the seed.
      BitfleetError: the data, the network, the optimizer or the payload is not usable.
    """
    spec, training = ModelSpec.from_json(task.spec_json), task.training
    held = local_state or LocalState()
    if unknown := sorted(task.local_tensors - set(spec.tensor_shapes())):
        raise TaskFailedError(f"the task names local tensors that model {spec.name!r} does not have: {unknown}")
    with parts_of(dataset, training.local_validation, task.device_id) as (seen, held_out):
        job_labels = labels_in_job(spec, seen, task.classes)
        engine = shelf.take(spec, training, min(training.batch_size, seen.num_examples))
        base = load_model(engine, spec, task, model, steps, held.own)
        kept = base if steps else None
        statistics: State = {}
        if training.statistics_batches > 0:
            statistics = take_statistics(engine, spec, seen, job_labels, task)
        score = None
        if held_out is not None:
            score = _score(engine, held_out, labels_in_job(spec, held_out, task.classes))
            if on_score is not None:
                on_score(score, engine.state(copy=False))
        if training.local_steps == 0:
            payload = _encode_statistics(spec, task, statistics, score)
            return LocalUpdate(payload, seen.num_examples, 0, 0.0, 0.0, 0.0, score, kept)
        began = time.monotonic()
        loss, accuracy = run_steps(engine, seen, job_labels, task, on_step)
        training_seconds = time.monotonic() - began
    trained = {**engine.state(copy=False), **statistics}
    payload, next_held = _encode(spec, task, trained, base, held, metrics_of(loss, accuracy, score))
    steps_done = training.local_steps
    return LocalUpdate(
        payload, seen.num_examples, steps_done, loss, accuracy, training_seconds, score, kept, next_held, began
    )


def _encode_statistics(spec: ModelSpec, task: LocalTask, statistics: State, score: LocalScore | None) -> bytes:
    """Write an update of statistics alone."""
    if task.summed is not None:
        form = task.summed.form(spec, "statistics", task.local_tensors)
        return form.encode(statistics, metrics_of(0.0, 0.0, score)).to_bytes()
    return get_state_codec(task.up_codec).encode(spec, statistics, kind="statistics", local=task.local_tensors)


def _encode(
    spec: ModelSpec, task: LocalTask, trained: State, base: bytes | memoryview, held: LocalState, metrics: Metrics
) -> tuple[bytes, LocalState | None]:
    """Write an update, and give what the device keeps for the next one."""
    codec, local = get_codec(task.up_codec), task.local_tensors
    owed: State = {}
    if task.summed is not None:
        form = task.summed.form(spec, "update", local)
        start = model_codec(task.down_codec).decode(spec, base, kind="model")
        told, owed = tell_whole(form, trained, start, held.feedback, task.summed.agreed_scales(spec, local))
        payload = form.encode(told, metrics).to_bytes()
    elif isinstance(codec, StateCodec):
        payload = codec.encode(spec, trained, kind="update", local=local)
    else:
        start = model_codec(task.down_codec).decode(spec, base, kind="model")
        difference, owed = tell_difference(spec, trained, start, held.feedback, codec, local)
        payload = codec.encode(spec, difference, kind="update", local=local)
    own = own_tensors(spec, trained, local)
    return payload, LocalState(owed, own) if owed or own else None


def _score(engine: Engine, dataset: Dataset, job_labels: NDArray[np.int32]) -> LocalScore:
    result = evaluate(engine, dataset, labels=job_labels)
    return LocalScore(result.count, result.correct, result.loss)


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


def load_model(
    engine: Engine,
    spec: ModelSpec,
    task: LocalTask,
    payload: bytes | memoryview | None,
    steps: Sequence[bytes | memoryview] = (),
    own: State | None = None,
) -> bytes | memoryview:
    """Bring the engine to the model that the task names: from its payload, else from the job's seed, then by steps.

    The device's ``own`` tensors take the place of the model's then.

    All ways end in the same state, its randomness drawn from ``task.seed``, the device's own.

    Returns:
      The payload of the task's model.

    Raises:
      ModelMissingError: none gives the bytes that the task's digest names.
      PayloadError: the payload is no model of this network.
    """
    codec = model_codec(task.down_codec)
    where = "the cached payload"
    if payload is None:
        engine.initialise(task.initial_seed)
        payload = codec.encode(spec, engine.state(copy=False), kind="model")
        where = "the model made from the seed"
    if steps:
        where = f"{where}, taken {len(steps)} steps further,"
        try:
            payload = follow_steps(spec, payload, steps, task.down_codec, task.local_tensors)
        except BitfleetError as error:
            raise ModelMissingError(f"{where} cannot be read: {error}") from error
    if payload_digest(payload) != task.model_digest:
        raise ModelMissingError(f"{where} does not have the digest that the task names")
    engine.seed = task.seed  # making the model drew from the job's seed
    engine.load_state(with_own_tensors(spec, codec.decode(spec, payload, kind="model"), own or {}))
    return payload


def take_statistics(
    engine: Engine, spec: ModelSpec, dataset: Dataset, job_labels: NDArray[np.int32], task: LocalTask
) -> State:
    """Take batch norm's statistics of the model as it is: means over some batches, drawn by the task's seed.

    Nothing else of the engine changes, but that its running statistics start from these.

    Returns:
      The statistics, copied.
    """
    batch_size = len(engine.labels)
    order = permutation(dataset.num_examples, derive_seed(task.seed, "statistics"), 0)
    for number in range(min(task.training.statistics_batches, dataset.num_examples // batch_size)):
        batch = order[number * batch_size : (number + 1) * batch_size]
        dataset.read(batch, engine.input)
        engine.labels[:] = job_labels[batch]
        engine.observe(number)
    state = engine.state(copy=False)
    return {tensor.name: state[tensor.name].copy() for tensor in spec.tensors if tensor.is_statistic}


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

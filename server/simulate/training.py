"""What one simulated device computes for a task: its training, poison where it is hostile, the header it sends.

No coordinator, no folder, no thread: whoever trains devices, here or in another process, calls this.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bitfleet.v1 import fleet_pb2 as pb
from bnncore.codec import payload_digest
from bnncore.data import Dataset
from bnncore.engine import Engine
from bnncore.federated import EngineShelf, LocalScore, LocalState, LocalTask, LocalTraining, LocalUpdate, train_locally
from bnncore.federated.local import OnStep
from bnncore.federated.replica import model_codec
from bnncore.optimizer import resolve_preset
from bnncore.spec import ModelSpec
from bnncore.state import State
from server.simulate.attack import poison
from server.simulate.exchange import summed_of


@dataclass(frozen=True)
class ModelSource:
    """What a task's model is made from.

    Attributes:
      model: a model's payload; None: the one that the job's seed makes.
      steps: payloads of the steps from it to the task's model.
    """

    model: bytes | memoryview | None
    steps: tuple[bytes | memoryview, ...] = ()


@dataclass(frozen=True)
class Lesson:
    """A task as one device has to do it.

    Attributes:
      device_id: whose.
      round_number: the task's round.
      task: the task's message, serialised.
      local_state: what came with the device's last accepted update; None: nothing.
      attack: what it sends in place of what it learns, a key of ``attack.ATTACKS``; None: it is honest.
      downloaded_bytes: of payloads that it has downloaded for the task.
    """

    device_id: str
    round_number: int
    task: bytes
    local_state: LocalState | None
    attack: str | None = None
    downloaded_bytes: int = 0


def train_device(
    lesson: Lesson, source: ModelSource, samples: Dataset, shelf: EngineShelf, on_step: OnStep | None = None
) -> LocalUpdate:
    """Do a device's task on its samples; see ``train_locally`` for what it raises."""
    task = pb.Task.FromString(lesson.task)
    update = train_locally(
        _local_task(task, lesson.device_id),
        source.model,
        samples,
        shelf,
        on_step,
        steps=source.steps,
        local_state=lesson.local_state,
    )
    if lesson.attack is None or update.steps == 0:
        return update  # also of an attacker, where it holds statistics alone
    spec, model = ModelSpec.from_json(task.spec_json), update.model or source.model
    codec = model_codec(task.down_codec)
    base = _initial_state(spec, task) if model is None else codec.decode(spec, model, kind="model")
    local = frozenset(task.local_tensors)
    return replace(update, payload=poison(lesson.attack, spec, base, update.payload, task.up_codec, local))


def _initial_state(spec: ModelSpec, task: pb.Task) -> State:
    preset = resolve_preset(task.training.preset, task.training.optimizer or None)
    engine = Engine(spec, batch_size=1, preset=preset, seed=task.initial_seed)
    engine.initialise(task.initial_seed)
    return engine.state()


def header_of(task: pb.Task, device_id: str, update: LocalUpdate, downloaded_bytes: int) -> pb.UpdateHeader:
    """Write the header of a device's update."""
    score = update.score or LocalScore(0, 0, 0.0)
    return pb.UpdateHeader(
        device_id=device_id,
        task_id=task.task_id,
        job_id=task.job_id,
        round_number=task.round_number,
        model_digest=task.model_digest,
        update_digest=payload_digest(update.payload),
        total_bytes=len(update.payload),
        num_examples=update.num_examples,
        codec=task.up_codec,
        metrics=pb.UpdateMetrics(
            loss=update.loss,
            accuracy=update.accuracy,
            steps=update.steps,
            seconds=update.training_seconds,
            training_seconds=update.training_seconds,
            downloaded_bytes=downloaded_bytes,
            validation_examples=score.examples,
            validation_correct=score.correct,
            validation_loss=score.loss,
        ),
    )


def _local_task(task: pb.Task, device_id: str) -> LocalTask:
    training = task.training
    return LocalTask(
        device_id=device_id,
        round_number=task.round_number,
        model_digest=task.model_digest,
        initial_seed=task.initial_seed,
        spec_json=task.spec_json,
        down_codec=task.down_codec,
        up_codec=task.up_codec,
        classes=tuple(task.classes),
        local_tensors=frozenset(task.local_tensors),
        summed=summed_of(task),
        training=LocalTraining(
            preset=training.preset,
            optimizer=training.optimizer,
            batch_size=training.batch_size,
            local_steps=training.local_steps,
            step_scale=training.step_scale,
            seed=training.seed,
            proximal_mu=training.proximal_mu,
            statistics_batches=training.statistics_batches,
            local_validation=training.local_validation,
        ),
    )

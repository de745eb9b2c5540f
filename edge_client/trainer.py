"""The child that trains: ``python -m edge_client.trainer --parent PID``, told of tasks on its standard input.

Each line there is a JSON string, the folder of a task; at the input's end it ends. Reads ``task.json`` in the folder,
trains the model on the device's own data and leaves ``update.safetensors`` there, complete or absent, or where updates
are added up under masks ``vector``, which nobody else may see; also the model,
where it was made by steps; what stays on the device for the job's next task once the update is accepted; and the model
as a checkpoint, where it is not worse on the device's validation part than the job's best one. Prints its progress and,
last, its outcome as events (``child.EventWriter``), after one that says that its life is tied to its parent's:

* ``{"outcome": "done", ...}`` with what an update's header needs;
* ``{"outcome": "declined" | "failed" | "model_missing", "reason": ...}``.

The update is a function of (model, data, task, device id) alone: the same task trained twice gives the same bytes,
whatever was trained between.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bnncore.bench.counting import count_step
from bnncore.checkpoint import load_checkpoint, save_checkpoint
from bnncore.codec import PayloadKind, payload_digest
from bnncore.data import Dataset, InputRange, open_for_job
from bnncore.durable import WRITTEN, replace_file
from bnncore.energy.model import modelled_energy
from bnncore.errors import CheckpointError, DataError, IncompatibleError
from bnncore.federated import (
    EngineShelf,
    LocalScore,
    LocalState,
    LocalTask,
    LocalTraining,
    LocalUpdate,
    train_locally,
)
from bnncore.federated.local_state import read_local_state, write_local_state
from bnncore.federated.memory import task_memory
from bnncore.optimizer import resolve_preset
from bnncore.spec import ModelSpec
from bnncore.state import State
from edge_client.child import (
    BEST_FILE,
    LOCAL_STATE_FILE,
    MODEL_FILE,
    TASK_FILE,
    UPDATE_FILE,
    VECTOR_FILE,
    EventWriter,
    bind_to_parent,
    child_parser,
)
from edge_client.errors import ModelMissingError, TaskDeclinedError, TaskError, TaskFailedError, public_reason
from edge_client.pss import begin_peak, peak_pss_bytes
from edge_client.summed import summed_of

__all__ = ["check_memory", "local_task_of", "main", "train_task"]

logger = logging.getLogger(__name__)

PROGRESS_INTERVAL_S = 0.5
"""Least time between two progress events."""

_OUTCOMES: dict[type[Exception], str] = {
    TaskDeclinedError: "declined",
    TaskFailedError: "failed",
    ModelMissingError: "model_missing",
}


def train_task(task: dict[str, Any], folder: Path, shelf: EngineShelf, events: EventWriter) -> dict[str, Any]:
    """Train one task and write its update.

    Args:
      task: the content of ``task.json`` (written by ``worker``).
      folder: where the update goes.
      shelf: where the engine comes from; it serves the next task too, if that is of the same kind.
      events: where progress goes.

    Returns:
      Nothing where the task says ``plan_only``: it may be done here, as far as memory goes. Else the outcome's fields:
      digest, size and codec of the update, num_examples, steps, mean loss (nats) and accuracy (0 to 1) over the local
      steps, their seconds and when they began, how the task's model did on the device's validation part, peak PSS of
      this process during the task, what it wrote to the disk.

    Raises:
      TaskDeclinedError: the job does not fit the data here, or takes more memory than the owner lets it.
      ModelMissingError: the model is not here and cannot be made from the seed.
      BitfleetError: the data, the network, the optimizer or the payload is not usable.
      OSError: the disk refused.
    """
    begin_peak()
    already_written = WRITTEN.num_bytes
    local_task = local_task_of(task)
    spec = ModelSpec.from_json(task["spec_json"])
    with _open_data(task, spec) as dataset:
        check_memory(local_task, spec, dataset.num_examples, shelf.threads, task["max_memory"])
        if task["plan_only"]:
            return {}
        update = _train(task, folder, spec, local_task, dataset, shelf, events)
    if update.model is not None:
        with replace_file(folder / MODEL_FILE) as file:
            file.write(update.model)
    if update.local_state is not None:
        write_local_state(folder / LOCAL_STATE_FILE, spec, update.local_state, local_task.local_tensors)
    name, mode = (UPDATE_FILE, 0o666) if local_task.summed is None else (VECTOR_FILE, 0o600)
    with replace_file(folder / name, mode=mode) as file:
        file.write(update.payload)
    score = update.score or LocalScore(0, 0, 0.0)
    return {
        "update_digest": payload_digest(update.payload),
        "total_bytes": len(update.payload),
        "codec": local_task.up_codec,
        "num_examples": update.num_examples,
        "steps": update.steps,
        "loss": update.loss,
        "accuracy": update.accuracy,
        "training_seconds": update.training_seconds,
        "training_began": update.training_began,
        "modelled_joules": _modelled_joules(spec, local_task, update),
        "validation_examples": score.examples,
        "validation_correct": score.correct,
        "validation_loss": score.loss,
        "peak_pss_bytes": peak_pss_bytes(),
        "written_bytes": WRITTEN.num_bytes - already_written,
    }


def local_task_of(task: dict[str, Any]) -> LocalTask:
    """Read what is to be trained out of ``task.json``; raises TaskFailedError where it makes no sense."""
    return LocalTask(
        device_id=task["device_id"],
        round_number=task["round_number"],
        model_digest=task["model_digest"],
        initial_seed=task["initial_seed"],
        spec_json=task["spec_json"],
        down_codec=task["down_codec"],
        up_codec=task["up_codec"],
        classes=tuple(task["classes"]),
        local_tensors=frozenset(task["local_tensors"]),
        training=LocalTraining(**task["training"]),
        summed=summed_of(task["summed"]),
    )


def check_memory(task: LocalTask, spec: ModelSpec, num_examples: int, threads: int, max_memory: int) -> None:
    """Work out anew what a task takes on this device, before anything is allocated for it.

    Args:
      task: what is to be trained.
      spec: its network.
      num_examples: on this device.
      threads: of a step.
      max_memory: bytes that its owner lets a trainer take.

    Raises:
      TaskDeclinedError: it takes more.
      BitfleetError: the engine cannot train this at all.
    """
    training = task.training
    kind: PayloadKind = "update" if training.local_steps else "statistics"
    parts = task_memory(
        spec,
        preset=training.preset,
        optimizer=training.optimizer or None,
        batch_size=min(training.batch_size, num_examples),
        threads=threads,
        # Statistics alone, which follow the last round, are small whatever their codec.
        up_codec=task.up_codec if training.local_steps else "int8",
        down_codec=task.down_codec,
        form=None if task.summed is None else task.summed.form(spec, kind, task.local_tensors),
    )
    needed = sum(parts.values())
    if needed > max_memory:
        raise TaskDeclinedError(
            f"the task takes {needed / 2**20:.1f} MiB of memory as this device plans it, its owner lets a trainer take "
            f"{max_memory / 2**20:.1f} MiB"
        )


def _open_data(task: dict[str, Any], spec: ModelSpec) -> Dataset:
    """Open the device's training samples in the form that the task's network reads."""
    root, told = task["data"]["root"], task["input_range"]
    try:
        input_range = None if told is None else InputRange.from_dict(told)
        if input_range is not None:
            input_range.check_fits(spec.input_shape)
    except DataError as error:  # the coordinator's, not the device's
        raise TaskFailedError(f"the task's input_range makes no sense: {error}") from error
    return open_for_job(
        task["data"]["name"],
        Path(root) if root else None,
        split="train",
        input_shape=spec.input_shape,
        input_range=input_range,
    )


def _train(
    task: dict[str, Any],
    folder: Path,
    spec: ModelSpec,
    local_task: LocalTask,
    dataset: Dataset,
    shelf: EngineShelf,
    events: EventWriter,
) -> LocalUpdate:
    """Train on an open data set."""
    model = None if task["model_path"] is None else Path(task["model_path"]).read_bytes()
    path = task["local_state_path"]
    return train_locally(
        local_task,
        model,
        dataset,
        shelf,
        _progress(events),
        steps=[Path(path).read_bytes() for path in task["step_paths"]],
        local_state=None if path is None else _local_state(Path(path), spec, local_task.local_tensors),
        on_score=functools.partial(_keep_best, task, folder, spec),
    )


def _local_state(path: Path, spec: ModelSpec, local: frozenset[str]) -> LocalState | None:
    """Read what came with this job's last accepted update; it is left out where the disk has damaged it."""
    try:
        return read_local_state(path, spec, local)
    except IncompatibleError as error:
        logger.warning("the local state of the last update is left out: %s", error)
        return None


def _keep_best(task: dict[str, Any], folder: Path, spec: ModelSpec, score: LocalScore, state: State) -> None:
    """Leave the task's model as a checkpoint, where it is not worse than the job's best one."""
    best = None if task["best_path"] is None else _score_of(Path(task["best_path"]))
    if best is not None and score.correct * best.examples < best.correct * score.examples:
        return
    extra = {
        **{
            name: task[name]
            for name in ("job_id", "device_id", "round_number", "model_digest", "classes", "input_range")
        },
        "validation_examples": score.examples,
        "validation_correct": score.correct,
        "validation_loss": score.loss,
    }
    save_checkpoint(folder / BEST_FILE, spec, state, extra=extra)


def _score_of(path: Path) -> LocalScore | None:
    """Read how a job's best model did; one that the disk has damaged does not count."""
    try:
        extra = load_checkpoint(path).extra
        return LocalScore(extra["validation_examples"], extra["validation_correct"], extra["validation_loss"])
    except (CheckpointError, KeyError) as error:
        logger.warning("the best model so far is left out: %s", error)
        return None


def _modelled_joules(spec: ModelSpec, task: LocalTask, update: LocalUpdate) -> float:
    """Estimate the energy of the steps from what they compute and move; 0 where that is not counted."""
    training = task.training
    batch_size = min(training.batch_size, update.num_examples)
    work = count_step(spec, batch_size, resolve_preset(training.preset, training.optimizer or None))
    joules: float = modelled_energy(work)["total_j"]
    return joules * update.steps


def _progress(events: EventWriter) -> Callable[[int, int], None]:
    """Tell of steps, not more often than every ``PROGRESS_INTERVAL_S``."""
    reported_at = -math.inf

    def on_step(step: int, total_steps: int) -> None:
        nonlocal reported_at
        if time.monotonic() - reported_at >= PROGRESS_INTERVAL_S:
            events.write({"step": step, "total_steps": total_steps})
            reported_at = time.monotonic()

    return on_step


def main(argv: list[str] | None = None) -> int:
    """Train the tasks that are named on standard input, one after the other, and print their outcomes."""
    parser = child_parser("edge_client.trainer", __doc__)
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of a training step (default: 1)")
    arguments = parser.parse_args(argv)
    bind_to_parent(arguments.parent)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    events = EventWriter()
    events.write({"ready": True})
    shelf = EngineShelf(arguments.threads)
    for line in sys.stdin.buffer:
        events.write(_outcome(Path(json.loads(line)), shelf, events))
    return 0


def _outcome(folder: Path, shelf: EngineShelf, events: EventWriter) -> dict[str, Any]:
    try:
        task = json.loads((folder / TASK_FILE).read_bytes())
        return {"outcome": "done", **train_task(task, folder, shelf, events)}
    except Exception as error:
        # Whatever happened becomes an event of the device, told to its owner in full and to the coordinator in short.
        logger.error("task failed: %s: %s", type(error).__name__, error, exc_info=not isinstance(error, TaskError))
        return {"outcome": _OUTCOMES.get(type(error), "failed"), "reason": public_reason(error)}


if __name__ == "__main__":
    sys.exit(main())

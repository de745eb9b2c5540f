"""The child that trains: ``python -m edge_client.trainer --parent PID TASK_DIR``.

Reads ``task.json`` in the task's folder, trains the model on the device's own data and leaves ``update.safetensors``
there, complete or absent. Prints its progress and, last, its outcome as events (``child.EventWriter``):

* ``{"outcome": "done", ...}`` with what an update's header needs;
* ``{"outcome": "declined" | "failed" | "model_missing", "reason": ...}``.

The update is a function of (model, data, task, device id) alone: the same task trained twice gives the same bytes.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.codec import get_codec, payload_digest
from bnncore.data import Dataset, open_dataset
from bnncore.durable import replace_file
from bnncore.engine import Engine, permutation
from bnncore.optimizer import resolve_preset
from bnncore.seeds import derive_seed
from bnncore.spec import ModelSpec
from edge_client.child import TASK_FILE, UPDATE_FILE, EventWriter, bind_to_parent, child_parser
from edge_client.errors import ModelMissingError, TaskDeclinedError, TaskError, TaskFailedError, public_reason
from edge_client.pss import peak_pss_bytes

__all__ = ["main", "train_task"]

logger = logging.getLogger(__name__)

PROGRESS_INTERVAL_S = 0.5
"""Least time between two progress events."""

_OUTCOMES: dict[type[Exception], str] = {
    TaskDeclinedError: "declined",
    TaskFailedError: "failed",
    ModelMissingError: "model_missing",
}


def train_task(task: dict[str, Any], folder: Path, events: EventWriter) -> dict[str, Any]:
    """Train one task and write its update.

    Args:
      task: the content of ``task.json`` (written by ``worker``).
      folder: where the update goes.
      events: where progress goes.

    Returns:
      The outcome's fields: digest, size and codec of the update, num_examples, steps, mean loss (nats) and accuracy
      (0 to 1) over the local steps and their seconds, peak PSS of this process.

    Raises:
      TaskDeclinedError: the job does not fit the data here.
      ModelMissingError: the model is not here and cannot be made from the seed.
      BitfleetError: the data, the network, the optimizer or the payload is not usable.
      OSError: the disk refused.
    """
    training = task["training"]
    if training["local_steps"] < 1 or training["batch_size"] < 1 or not math.isfinite(training["step_scale"]):
        raise TaskFailedError(f"local_steps and batch_size must be at least 1, step_scale finite; got {training}")
    spec = ModelSpec.from_json(task["spec_json"])
    root = task["data"]["root"]
    with open_dataset(task["data"]["name"], Path(root) if root else None, split="train") as dataset:
        job_labels = labels_in_job(spec, dataset, tuple(task["classes"]))
        seed = derive_seed(training["seed"], task["round_number"], task["device_id"])
        engine = Engine(
            spec,
            batch_size=min(training["batch_size"], dataset.num_examples),
            preset=resolve_preset(training["preset"], training["optimizer"] or None),
            seed=seed,
            threads=task["threads"],
        )
        load_model(engine, spec, task, seed)
        began = time.monotonic()
        loss, accuracy = run_steps(engine, dataset, job_labels, training, seed, events)
        training_seconds = time.monotonic() - began
        num_examples = dataset.num_examples
    payload = get_codec(task["up_codec"]).encode(spec, engine.state(), kind="update")
    with replace_file(folder / UPDATE_FILE) as file:
        file.write(payload)
    return {
        "update_digest": payload_digest(payload),
        "total_bytes": len(payload),
        "codec": task["up_codec"],
        "num_examples": num_examples,
        "steps": training["local_steps"],
        "loss": loss,
        "accuracy": accuracy,
        "training_seconds": training_seconds,
        "peak_pss_bytes": peak_pss_bytes(),
    }


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


def load_model(engine: Engine, spec: ModelSpec, task: dict[str, Any], seed: int) -> None:
    """Bring the engine to the model that the task names: from its payload, else from the job's seed.

    Both ways end in the same state, its randomness drawn from ``seed``, the device's own.

    Raises:
      ModelMissingError: neither gives the bytes that the task's digest names.
      PayloadError: the payload is no model of this network.
    """
    codec = get_codec(task["down_codec"])
    if task["model_path"] is not None:
        payload = Path(task["model_path"]).read_bytes()
        where = "the cached payload"
    else:
        engine.initialise(task["initial_seed"])
        payload = codec.encode(spec, engine.state(), kind="model")
        where = "the model made from the seed"
    if payload_digest(payload) != task["model_digest"]:
        raise ModelMissingError(f"{where} does not have the digest that the task names")
    engine.seed = seed  # making the model drew from the job's seed
    engine.load_state(codec.decode(spec, payload, kind="model"))


def run_steps(
    engine: Engine,
    dataset: Dataset,
    job_labels: NDArray[np.int32],
    training: dict[str, Any],
    seed: int,
    events: EventWriter,
) -> tuple[float, float]:
    """Do the local steps: epochs of full batches, each in an order of its own.

    Returns:
      Mean loss (nats) and accuracy (0 to 1) over the steps.
    """
    batch_size = len(engine.labels)
    total = training["local_steps"]
    steps_an_epoch = dataset.num_examples // batch_size
    loss, correct, reported_at = 0.0, 0, -math.inf
    for step in range(total):
        epoch, position = divmod(step, steps_an_epoch)
        if position == 0:
            order = permutation(dataset.num_examples, seed, epoch)
        batch = order[position * batch_size : (position + 1) * batch_size]
        dataset.read(batch, engine.input)
        engine.labels[:] = job_labels[batch]
        result = engine.step(training["step_scale"])
        loss += result.loss
        correct += result.correct
        if time.monotonic() - reported_at >= PROGRESS_INTERVAL_S:
            events.write({"step": step + 1, "total_steps": total})
            reported_at = time.monotonic()
    return loss / total, correct / (total * batch_size)


def main(argv: list[str] | None = None) -> int:
    """Train the task in TASK_DIR and print its outcome."""
    parser = child_parser("edge_client.trainer", __doc__)
    parser.add_argument("task_dir", type=Path, metavar="TASK_DIR")
    arguments = parser.parse_args(argv)
    bind_to_parent(arguments.parent)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    events = EventWriter()
    try:
        task = json.loads((arguments.task_dir / TASK_FILE).read_bytes())
        outcome = {"outcome": "done", **train_task(task, arguments.task_dir, events)}
    except Exception as error:
        # Whatever happened becomes an event of the device, told to its owner in full and to the coordinator in short.
        logger.error("task failed: %s: %s", type(error).__name__, error, exc_info=not isinstance(error, TaskError))
        outcome = {"outcome": _OUTCOMES.get(type(error), "failed"), "reason": public_reason(error)}
    events.write(outcome)
    return 0


if __name__ == "__main__":
    sys.exit(main())

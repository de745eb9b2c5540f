"""The child that trains: ``python -m edge_client.trainer --parent PID TASK_DIR``.

Reads ``task.json`` in the task's folder, trains the model on the device's own data and leaves ``update.safetensors``
there, complete or absent; also the model, where it was made by steps, and the feedback for the job's next update, where
the codec could not say all. Prints its progress and, last, its outcome as events (``child.EventWriter``):

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bnncore.codec import payload_digest
from bnncore.data import open_dataset
from bnncore.durable import replace_file
from bnncore.errors import IncompatibleError
from bnncore.federated import EngineShelf, LocalTask, LocalTraining, train_locally
from bnncore.federated.feedback import read_feedback, write_feedback
from bnncore.spec import ModelSpec
from bnncore.state import State
from edge_client.child import (
    FEEDBACK_FILE,
    MODEL_FILE,
    TASK_FILE,
    UPDATE_FILE,
    EventWriter,
    bind_to_parent,
    child_parser,
)
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
    local_task = LocalTask(
        device_id=task["device_id"],
        round_number=task["round_number"],
        model_digest=task["model_digest"],
        initial_seed=task["initial_seed"],
        spec_json=task["spec_json"],
        down_codec=task["down_codec"],
        up_codec=task["up_codec"],
        classes=tuple(task["classes"]),
        training=LocalTraining(**task["training"]),
    )
    model = None if task["model_path"] is None else Path(task["model_path"]).read_bytes()
    steps = [Path(path).read_bytes() for path in task["step_paths"]]
    spec = ModelSpec.from_json(task["spec_json"])
    feedback = None if task["feedback_path"] is None else _feedback(Path(task["feedback_path"]), spec)
    root = task["data"]["root"]
    with open_dataset(task["data"]["name"], Path(root) if root else None, split="train") as dataset:
        shelf = EngineShelf(task["threads"])
        update = train_locally(local_task, model, dataset, shelf, _progress(events), steps=steps, feedback=feedback)
    if update.model is not None:
        with replace_file(folder / MODEL_FILE) as file:
            file.write(update.model)
    if update.feedback is not None:
        write_feedback(folder / FEEDBACK_FILE, spec, update.feedback)
    with replace_file(folder / UPDATE_FILE) as file:
        file.write(update.payload)
    return {
        "update_digest": payload_digest(update.payload),
        "total_bytes": len(update.payload),
        "codec": local_task.up_codec,
        "num_examples": update.num_examples,
        "steps": update.steps,
        "loss": update.loss,
        "accuracy": update.accuracy,
        "training_seconds": update.training_seconds,
        "peak_pss_bytes": peak_pss_bytes(),
    }


def _feedback(path: Path, spec: ModelSpec) -> State | None:
    """Read what this job's last accepted update could not say; it is left out where the disk has damaged it."""
    try:
        return read_feedback(path, spec)
    except IncompatibleError as error:
        logger.warning("the feedback of the last update is left out: %s", error)
        return None


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

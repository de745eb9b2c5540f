"""What a device reaches alone: the same network, its own data, as many steps as it does in the fleet."""

from __future__ import annotations

from pathlib import Path

from bnncore.data import Dataset, open_dataset
from bnncore.engine import Engine
from bnncore.seeds import derive_seed
from bnncore.training import evaluate, train
from server.demo.scenario import SEED
from server.jobs import JobConfig


def train_alone(job: JobConfig, folder: Path, held_out: Dataset) -> float:
    """Train on one device's data alone, from the fleet's first weights.

    Args:
      job: the fleet's job; its network, its batch size and ``rounds * local_steps`` steps are taken from it.
      folder: the device's data.
      held_out: the set on which the fleet is evaluated too.

    Returns:
      Accuracy in percent on the held-out set.
    """
    steps = job.rounds * job.local_steps
    with open_dataset("idx", folder, split="train") as dataset:
        engine = Engine(job.spec, batch_size=min(job.batch_size, dataset.num_examples), seed=SEED)
        engine.initialise(SEED)
        # More epochs than it can take; the steps end it.
        train(engine, dataset, epochs=steps, max_steps=steps, seed=derive_seed(SEED, folder.parent.name))
    return evaluate(engine, held_out).accuracy

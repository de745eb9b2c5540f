"""What the demo's fleet learns, and who holds which part of the data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bnncore.data import Dataset, dirichlet_shards, open_dataset, write_idx
from bnncore.errors import ConfigurationError

ALPHA = 1.0
"""Dirichlet parameter of the split: devices have all classes, in very different shares."""

SEED = 0
"""Decides the split, the first weights and every shuffle."""


@dataclass(frozen=True)
class Scenario:
    """One demo: a data set, a network, and how long it is trained."""

    dataset: str
    widths: tuple[int, ...]
    """Hidden layers of the network."""
    rounds: int
    local_steps: int
    """Steps of each device in each round."""
    num_devices: int = 4
    batch_size: int = 100

    @property
    def total_steps(self) -> int:
        """Steps of each device in the whole job."""
        return self.rounds * self.local_steps

    def job(self, classes: Sequence[str], input_shape: Sequence[int], data: Path | None) -> dict[str, Any]:
        """Build the job file's object; ``data`` is the folder of the held-out set, None where its name is enough."""
        return {
            "name": f"demo-{self.dataset}",
            "model": {"zoo": "mlp", "params": {"widths": list(self.widths)}},
            "classes": list(classes),
            "input_shape": list(input_shape),
            "rounds": self.rounds,
            "min_devices": self.num_devices,
            "quorum": self.num_devices,
            "deadline_s": 300.0,
            "local_steps": self.local_steps,
            "batch_size": self.batch_size,
            "seed": SEED,
            "evaluation": {"dataset": self.dataset, "data": None if data is None else str(data)},
        }


SCENARIOS = {
    "digits": Scenario("digits", widths=(256, 256), rounds=15, local_steps=50),
    "mnist": Scenario("mnist", widths=(256, 256, 256, 256), rounds=10, local_steps=300),
}
"""By data set. Two epochs a round or more, since a device's optimizer starts anew in each."""


def choose(dataset: str, *, num_devices: int, rounds: int | None) -> Scenario:
    """Take a data set's scenario and change what was asked for.

    Raises:
      ConfigurationError: there is no such scenario, or a number is not positive.
    """
    if dataset not in SCENARIOS:
        raise ConfigurationError(f"--dataset must be one of {', '.join(SCENARIOS)}, got {dataset!r}")
    scenario = SCENARIOS[dataset]
    chosen = replace(scenario, num_devices=num_devices, rounds=scenario.rounds if rounds is None else rounds)
    for flag, number in (("--devices", chosen.num_devices), ("--rounds", chosen.rounds)):
        if number < 1:
            raise ConfigurationError(f"{flag} must be at least 1, got {number}")
    return chosen


def write_shards(dataset: Dataset, folders: Sequence[Path]) -> None:
    """Split a training set over devices: each folder gets its shard as idx files, and nothing else of it.

    Args:
      dataset: the training split.
      folders: one a device; made when missing.
    """
    shards = dirichlet_shards(dataset.labels, len(folders), ALPHA, SEED)
    for folder, shard in zip(folders, shards, strict=True):
        images = np.empty((len(shard), dataset.rows.row_bytes), np.uint8)
        dataset.read(shard, images)
        shaped = images.reshape(len(shard), *dataset.input_shape)
        write_idx(folder, shaped, dataset.labels[shard], "train", classes=dataset.classes)


def lay_out(scenario: Scenario, data: Path | None, root: Path) -> tuple[Path, list[Path]]:
    """Write the job file and the devices' data under ``root``.

    Returns:
      The job file, and the devices' data folders.

    Raises:
      DataError: the data set is not there.
    """
    folders = [root / f"device-{number}" / "data" for number in range(1, scenario.num_devices + 1)]
    with open_dataset(scenario.dataset, data, split="train") as dataset:
        write_shards(dataset, folders)
        job = scenario.job(dataset.classes, dataset.input_shape, data)
    job_file = root / "job.json"
    job_file.write_text(json.dumps(job, indent=2) + "\n")
    return job_file, folders

"""The templates: each is a valid job, teaches by comments, and trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnncore.data import open_dataset, write_idx
from bnncore.errors import ConfigurationError
from server.job_files import list_templates, read_template
from server.notebook import federate

NAMES = ("cifar10", "digits", "har", "mnist-onebit", "pictures", "private-votes")


def test_they_are_listed_with_what_they_are_for() -> None:
    templates = list_templates()

    assert tuple(templates) == NAMES
    assert all(20 < len(text) <= 110 for text in templates.values())
    with pytest.raises(ConfigurationError, match=r"template must be one of cifar10, digits.* got 'none'"):
        read_template("none")


@pytest.mark.parametrize("name", NAMES)
def test_each_is_valid_and_says_how_it_is_used(name: str) -> None:
    template = read_template(name)

    job = template.validate()

    assert job.name == name
    assert f"jobs create --template {name}" in template.text
    assert template.text.count("\n#") >= 5


@pytest.mark.parametrize("name", ["digits", "har", "mnist-onebit", "pictures"])
def test_each_small_one_trains(name: str, tmp_path: Path) -> None:
    job = read_template(name).value
    classes, count = job["classes"], 60
    samples = np.random.default_rng(0).integers(0, 256, (count, *job["input_shape"])).astype(np.uint8)
    write_idx(tmp_path, samples, np.arange(count, dtype=np.uint8) % len(classes), "train", classes=classes)
    job.pop("evaluation", None)

    with open_dataset("idx", tmp_path, split="train") as dataset:
        keys: dict[str, Any] = {"rounds": 1, "local_steps": 2, "cohort_size": 0, "quorum": None, "batch_size": 20}
        history = federate(job, datasets=[dataset, dataset], evaluation=dataset, threads=1, progress=False, **keys)

    assert [round_.updates for round_ in history.rounds] == [2]
    assert history.accuracy is not None

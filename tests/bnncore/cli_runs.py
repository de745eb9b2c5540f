"""Runs of the command ``bitfleet`` in this process, and a small data set for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnncore.cli.main import main
from bnncore.data import Split, write_idx

SMALL = ["--batch-size", "10", "--widths", "16"]


def make_shapes(folder: Path, *, num_train: int = 60) -> Path:
    """Write an idx folder of 5 x 4 images: bright ones are "sun", dark ones "moon"."""
    generator = np.random.default_rng(0)
    counts: dict[Split, int] = {"train": num_train, "test": 25}
    for split, count in counts.items():
        labels = np.arange(count) % 2
        images = generator.integers(0, 100, (count, 5, 4)) + 150 * (1 - labels)[:, None, None]
        write_idx(folder, images.astype(np.uint8), labels, split, classes=["sun", "moon"])
    return folder


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Run a command with --json - and give what it printed; nothing but JSON may be on standard output."""
    assert main([*arguments, "--json", "-"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def fail(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    """Run a command that must fail with an exit code; gives its message, which must be one line."""
    assert main(list(arguments)) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("bitfleet: error: ")
    assert captured.err.count("\n") == 1
    return captured.err

"""The long comparison of presets goes on where it was stopped."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import accuracy
from bnncore.resume import save_training


def outcome(monkeypatch: pytest.MonkeyPatch, path: Path, *options: str) -> list[dict[str, Any]]:
    command = [
        "accuracy",
        "--model",
        "mlp",
        "--dataset",
        "digits",
        "--data",
        "",
        "--widths",
        "16",
        "--batch-size",
        "200",
    ]
    monkeypatch.setattr(sys, "argv", [*command, "--epochs", "2", "--json", str(path), *options])
    accuracy.main()
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return [{name: value for name, value in row.items() if name != "step_ms_median"} for row in rows]


@pytest.mark.parametrize("saves", [3, 8, 19])  # in the first epoch, at its end, and in the second preset
def test_a_stopped_run_ends_as_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves: int) -> None:
    whole = outcome(monkeypatch, tmp_path / "whole.json")
    done: list[Path] = []

    def save_and_stop(path: Path, *state: Any) -> None:
        keep(path, *state)
        done.append(path)
        if len(done) == saves:
            raise KeyboardInterrupt

    keep = save_training
    options = ("--state", str(tmp_path / "state"))
    with monkeypatch.context() as patch:
        patch.setattr(accuracy, "SAVE_EVERY_S", 0.0)
        patch.setattr(accuracy, "save_training", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            outcome(patch, tmp_path / "cut.json", *options)

    assert outcome(monkeypatch, tmp_path / "resumed.json", *options) == whole
    assert not (tmp_path / "cut.json").exists()

"""``bitfleet train`` and ``bitfleet evaluate`` when all goes well."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from bnncore.checkpoint import load_checkpoint
from bnncore.cli.main import main
from bnncore.data import Split, write_idx
from bnncore.engine import Engine, isa_selected
from bnncore.optimizer import resolve_preset
from bnncore.state import weights_digest
from bnncore.zoo import mlp
from tests.bnncore.cli_runs import SMALL, make_shapes, run_json


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """No data folder from outside."""
    monkeypatch.delenv("BITFLEET_DATA", raising=False)


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """An idx folder with two classes."""
    return make_shapes(tmp_path / "shapes")


def test_training_reports_what_scripts_rely_on(capsys: pytest.CaptureFixture[str], shapes: Path) -> None:
    result = run_json(capsys, "train", "--data", str(shapes), *SMALL, "--epochs", "15", "--seed", "4")

    assert result["accuracy"] == result["epochs"][-1]["accuracy"] > 90
    assert [epoch["steps"] for epoch in result["epochs"]] == [6] * 15
    assert result["step_ms_median"] > 0
    assert 0 < result["plan_peak_bytes"] < 1 << 20 < result["rss_peak_bytes"]
    assert result["isa"] == isa_selected()
    assert (result["preset"], result["preset_digest"]) == ("bitfleet", resolve_preset().digest)
    assert len(result["weights_digest"]) == 64


def test_training_is_the_same_on_any_number_of_threads_and_any_isa(
    capsys: pytest.CaptureFixture[str], shapes: Path
) -> None:
    command = ["train", "--data", str(shapes), "--batch-size", "20", "--widths", "256,256", "--json", "-"]
    portable = {**os.environ, "BITFLEET_ISA": "portable"}

    digests = {run_json(capsys, *command[:-2], "--threads", threads)["weights_digest"] for threads in "1223"}
    other = subprocess.run(
        [sys.executable, "-m", "bnncore.cli", *command], env=portable, capture_output=True, check=True
    )

    assert digests == {json.loads(other.stdout)["weights_digest"]}
    assert json.loads(other.stdout)["isa"] == "portable"


def test_people_get_a_summary_and_the_file_the_json(
    capsys: pytest.CaptureFixture[str], shapes: Path, tmp_path: Path
) -> None:
    assert main(["train", "--data", str(shapes), *SMALL, "--epochs", "2", "--json", str(tmp_path / "r.json")]) == 0
    captured = capsys.readouterr()
    result = json.loads((tmp_path / "r.json").read_text())

    assert f"test accuracy    {result['accuracy']:.2f} %" in captured.out
    assert result["weights_digest"] in captured.out
    assert len([line for line in captured.out.splitlines() if line.startswith("epoch")]) == 2
    assert captured.err == ""  # no progress bar where nobody watches


def test_a_saved_network_evaluates_to_the_accuracy_of_training(
    capsys: pytest.CaptureFixture[str], shapes: Path, tmp_path: Path
) -> None:
    saved = str(tmp_path / "model.safetensors")

    for optimizer in ("latent8m", "bop", "adam"):
        trained = run_json(
            capsys, "train", "--data", str(shapes), *SMALL, "--epochs", "2", "--save", saved, "--optimizer", optimizer
        )
        measured = run_json(capsys, "evaluate", saved, "--data", str(shapes), "--batch-size", "7")

        assert measured["accuracy"] == trained["accuracy"]
        assert measured["count"] == 25
        assert measured["weights_digest"] == trained["weights_digest"]
        assert load_checkpoint(saved).extra["classes"] == ["sun", "moon"]
        assert load_checkpoint(saved).extra["optimizer"] == optimizer


def test_max_steps_stops_early_and_zero_does_not_train(capsys: pytest.CaptureFixture[str], shapes: Path) -> None:
    some = run_json(capsys, "train", "--data", str(shapes), *SMALL, "--max-steps", "8")
    none = run_json(capsys, "train", "--data", str(shapes), *SMALL, "--max-steps", "0")

    assert (some["steps"], [epoch["steps"] for epoch in some["epochs"]]) == (8, [6, 2])
    assert (none["steps"], none["epochs"], none["accuracy"], none["weights_digest"]) == (0, [], None, None)
    assert none["plan_peak_bytes"] == some["plan_peak_bytes"]


def test_saving_after_no_step_keeps_the_initial_weights(
    capsys: pytest.CaptureFixture[str], shapes: Path, tmp_path: Path
) -> None:
    saved = str(tmp_path / "model.safetensors")
    run_json(capsys, "train", "--data", str(shapes), *SMALL, "--max-steps", "0", "--seed", "9", "--save", saved)
    engine = Engine(mlp((5, 4), (16,), 2), batch_size=1)
    engine.initialise(9)

    assert load_checkpoint(saved).weights_digest == weights_digest(engine.spec, engine.state())


@pytest.mark.slow
def test_training_takes_the_planned_memory_and_little_more(data_root: Path) -> None:
    """Peak resident memory with training minus that of the same command without."""

    def run(steps: int) -> dict[str, Any]:
        command = ["train", "--dataset", "mnist", "--data", str(data_root), "--max-steps", str(steps), "--json", "-"]
        done = subprocess.run([sys.executable, "-m", "bnncore.cli", *command], capture_output=True, check=True)
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    run(0)  # inflates MNIST into the cache
    without, trained = run(0), run(100)

    taken = trained["rss_peak_bytes"] - without["rss_peak_bytes"]
    assert abs(taken - trained["plan_peak_bytes"]) <= 0.05 * trained["plan_peak_bytes"] + (1 << 20)


def test_a_residual_network_trains_under_the_standard_algorithm(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    for split in get_args(Split):
        labels = np.arange(60) % 2
        images = generator.integers(0, 100, (60, 8, 8, 3)) + 150 * (1 - labels)[:, None, None, None]
        write_idx(tmp_path, images.astype(np.uint8), labels, split, classes=["sun", "moon"])
    saved, widths = str(tmp_path / "model"), ("--widths", "8,12")
    command: tuple[str, ...] = ("train", "--data", str(tmp_path), "--model", "resnete18", *widths, "--batch-size", "20")
    command = (*command, "--preset", "standard", "--epochs", "4")

    whole = run_json(capsys, *command, "--save", saved)
    evaluated = run_json(capsys, "evaluate", saved, "--data", str(tmp_path))

    planned = run_json(
        capsys, "memory", "--model", "resnete18", *widths, "--input-shape", "8,8,3", "--classes", "2",
        "--batch-size", "20", "--preset", "standard",
    )  # fmt: skip
    assert whole["accuracy"] > 90
    assert evaluated["accuracy"] > 90
    assert (whole["preset"], whole["plan_peak_bytes"]) == ("standard", planned["bitfleet"]["total_bytes"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "preset"),
    [
        *itertools.product(["cnv", "binarynet"], ["standard", "paper", "bitfleet"]),
        *itertools.product(["resnete18"], ["standard", "bitfleet"]),
    ],
)
def test_convolutions_take_the_planned_memory_and_little_more(model: str, preset: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for split in get_args(Split):
        samples = generator.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
        write_idx(tmp_path, samples, np.arange(40) % 10, split, classes=[str(i) for i in range(10)])
    command = [sys.executable, "-m", "bnncore.cli", "train", "--model", model, "--data", str(tmp_path), "--json", "-"]
    command += ["--preset", preset, "--batch-size", "20", "--max-steps"]

    def run(steps: int) -> dict[str, Any]:
        done = subprocess.run([*command, str(steps)], capture_output=True, check=True)
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    without, trained = run(0), run(2)

    taken = trained["rss_peak_bytes"] - without["rss_peak_bytes"]
    assert abs(taken - trained["plan_peak_bytes"]) <= 0.05 * trained["plan_peak_bytes"] + (1 << 20)


@pytest.mark.slow
def test_digits_are_learnt_within_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    result = run_json(capsys, "train", "--dataset", "digits", "--epochs", "20", "--batch-size", "20", "--widths", "128")

    assert result["accuracy"] > 92


@pytest.mark.slow
def test_one_epoch_of_mnist_is_learnt(capsys: pytest.CaptureFixture[str], data_root: Path) -> None:
    result = run_json(capsys, "train", "--dataset", "mnist", "--data", str(data_root), "--epochs", "1")

    assert result["accuracy"] > 90


def test_a_model_file_trains(capsys: pytest.CaptureFixture[str], shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(mlp((20,), (8, 8), 2).to_json())

    result = run_json(
        capsys, "train", "--data", str(shapes), "--model", str(tmp_path / "mine.json"), "--batch-size", "10"
    )

    assert result["steps"] == 30


def test_a_terminal_shows_progress(tmp_path: Path) -> None:
    many = make_shapes(tmp_path, num_train=200_000)
    command = [sys.executable, "-m", "bnncore.cli", "train", "--data", str(many), *SMALL, "--epochs", "1"]
    controller, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=terminal) as process:
        os.close(terminal)
        shown = b""
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            while chunk := os.read(controller, 4096):
                shown += chunk
    os.close(controller)

    assert process.returncode == 0
    assert b"training:" in shown
    assert b"/20000" in shown

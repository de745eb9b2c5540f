"""A run that stops and goes on ends with the weights of one that never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnncore.cli.main import main
from bnncore.data import open_dataset
from bnncore.engine import Engine
from bnncore.errors import CheckpointError
from bnncore.optimizer import FLOAT_OPTIMIZERS, OPTIMIZERS, resolve_preset
from bnncore.resume import load_training, save_training
from bnncore.schedule import build_schedule
from bnncore.spec import ModelSpec
from bnncore.state import weights_digest
from bnncore.training import Progress, train
from bnncore.zoo import binarynet, mlp, resnete18
from tests.bnncore.cli_runs import SMALL, fail, make_shapes, run_json
from tests.patience import LIMIT_S

EPOCHS, BATCH = 3, 13  # 60 examples: 4 steps an epoch
CHOICES = [("bitfleet", name) for name in sorted(OPTIMIZERS)]
CHOICES += [(preset, name) for preset in ("standard", "paper") for name in FLOAT_OPTIMIZERS]


class Stopped(Exception):
    """Raised in the middle of a run."""


def run(
    spec: ModelSpec, folder: Path, preset: str, optimizer: str, *, stop: int | None = None, file: Path | None = None
) -> tuple[str, Any]:
    """Train from the start, or from ``file`` if it is there; stop after ``stop`` steps and keep the run in ``file``."""
    with open_dataset("idx", folder, split="train") as dataset:
        engine = Engine(spec, batch_size=BATCH, preset=resolve_preset(preset, optimizer), seed=5)
        progress = Progress()
        if file is not None and file.exists():
            progress = load_training(file, engine, {"run": 1})

        def on_step(done: int, total: int, loss: float) -> None:
            if done == stop:
                assert file is not None
                save_training(file, engine, progress, {"run": 1})
                raise Stopped

        result = train(
            engine,
            dataset,
            epochs=EPOCHS,
            seed=5,
            schedule=build_schedule("plateau", patience=1),
            progress=progress,
            on_step=on_step,
        )
        return weights_digest(spec, engine.state()), [(e.number, e.steps, e.loss, e.accuracy) for e in result.epochs]


@pytest.mark.parametrize(("preset", "optimizer"), CHOICES)
def test_it_goes_on_bit_for_bit_after_any_step(preset: str, optimizer: str, tmp_path: Path) -> None:
    spec = binarynet((5, 4), (6,), 1, (9,), 2)
    folder = make_shapes(tmp_path / "shapes")
    whole = run(spec, folder, preset, optimizer)
    for stop in range(1, 13):
        file = tmp_path / f"{stop}.safetensors"
        with pytest.raises(Stopped):
            run(spec, folder, preset, optimizer, stop=stop, file=file)

        assert run(spec, folder, preset, optimizer, file=file) == whole, f"stopped after step {stop}"


@pytest.mark.parametrize(("preset", "optimizer"), [("bitfleet", "latent8"), ("standard", "adam"), ("standard", "sgd")])
def test_residual_networks_go_on_likewise(preset: str, optimizer: str, tmp_path: Path) -> None:
    spec, folder, file = resnete18((5, 4), (6,), 2, 2), make_shapes(tmp_path / "shapes"), tmp_path / "run.safetensors"
    whole = run(spec, folder, preset, optimizer)
    with pytest.raises(Stopped):
        run(spec, folder, preset, optimizer, stop=5, file=file)

    assert run(spec, folder, preset, optimizer, file=file) == whole


def test_a_file_that_is_not_this_run_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    spec, file = mlp((5, 4), (6,), 2), tmp_path / "run.safetensors"
    engine = Engine(spec, batch_size=4, seed=1)
    engine.initialise()
    before = weights_digest(spec, engine.state())
    save_training(file, engine, Progress(), {"epochs": 5})
    whole = file.read_bytes()

    def refuse(target: Engine, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            load_training(file, target, settings)

    refuse(engine, {"epochs": 6}, "epochs was 5, is 6")
    refuse(Engine(spec, batch_size=5), {"epochs": 5}, "batch_size was 4, is 5")
    refuse(Engine(mlp((5, 4), (7,), 2), batch_size=4), {"epochs": 5}, "model was")
    refuse(Engine(spec, batch_size=4, preset=resolve_preset("standard")), {"epochs": 5}, "preset was")
    for cut in (0, 5, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        refuse(engine, {"epochs": 5}, "no valid saved run")
    changed = bytearray(whole)
    changed[-1] ^= 1
    file.write_bytes(changed)
    refuse(engine, {"epochs": 5}, "not those that were saved")
    file.unlink()
    refuse(engine, {"epochs": 5}, "cannot be read")
    assert weights_digest(spec, engine.state()) == before


def test_a_checkpoint_of_a_network_is_no_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shapes, saved = make_shapes(tmp_path / "shapes"), tmp_path / "m.safetensors"
    run_json(capsys, "train", "--data", str(shapes), *SMALL, "--epochs", "1", "--save", str(saved))

    message = fail(capsys, 3, "train", "--data", str(shapes), *SMALL, "--epochs", "1", "--resume", str(saved))

    assert "no saved run of bitfleet" in message


def saved_steps(file: Path) -> int:
    data = file.read_bytes()
    header = json.loads(data[8:][: int.from_bytes(data[:8], "little")])
    return int(json.loads(header["__metadata__"]["bitfleet"])["progress"]["steps"])


def test_a_run_is_kept_from_its_start(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shapes, file = make_shapes(tmp_path / "shapes"), tmp_path / "run.safetensors"
    options = ["train", "--data", str(shapes), *SMALL, "--epochs", "2"]
    script = (
        "import sys, bnncore.engine\n"
        "from bnncore.cli.main import main\n"
        "bnncore.engine.Engine.step = lambda *_: sys.exit(9)\n"  # cut off in the first step
        "main(sys.argv[1:])"
    )
    cut_off = subprocess.run([sys.executable, "-c", script, *options, "--checkpoint", str(file)], check=False)

    resumed = run_json(capsys, *options, "--resume", str(file))

    assert cut_off.returncode == 9
    assert resumed["weights_digest"] == run_json(capsys, *options)["weights_digest"]


def test_the_command_goes_on_after_a_kill(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shapes, file = make_shapes(tmp_path / "shapes", num_train=600), tmp_path / "run.safetensors"
    options = ["train", "--data", str(shapes), *SMALL, "--epochs", "300", "--schedule", "cosine"]
    process = subprocess.Popen(
        [sys.executable, "-m", "bnncore.cli", *options, "--checkpoint", str(file), "--checkpoint-every", "7"],
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + LIMIT_S
        while not (file.exists() and saved_steps(file)) and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()

    resumed = run_json(capsys, *options, "--resume", str(file))
    whole = run_json(capsys, *options)

    assert resumed["weights_digest"] == whole["weights_digest"]
    assert [e["accuracy"] for e in resumed["epochs"]] == [e["accuracy"] for e in whole["epochs"]]
    assert resumed["steps"] == whole["steps"] == 18_000


def test_ctrl_c_keeps_the_run_and_says_how_to_go_on(tmp_path: Path) -> None:
    shapes, file = make_shapes(tmp_path / "shapes", num_train=600), tmp_path / "run.safetensors"
    options = ["train", "--data", str(shapes), *SMALL, "--epochs", "100000", "--checkpoint", str(file)]
    process = subprocess.Popen(
        [sys.executable, "-m", "bnncore.cli", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("epoch   1")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT_S)

    assert process.returncode == 130
    assert f"go on with --resume {file}" in out
    assert err.strip() == "bitfleet: interrupted"
    assert saved_steps(file) > 60


def test_options_that_say_nothing_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = ["train", "--data", str(make_shapes(tmp_path / "shapes")), *SMALL]

    assert "--checkpoint-every" in fail(capsys, 3, *data, "--checkpoint-every", "5")
    assert "--checkpoint out" in fail(capsys, 3, *data, "--checkpoint", "a", "--resume", "b")
    unkept = ("train", "--data", str(tmp_path / "no-data"), "--resume", str(tmp_path / "missing"))
    assert "missing. Start one with --checkpoint" in fail(capsys, 3, *unkept)  # before data are looked at
    nowhere = str(tmp_path / "no" / "folder")
    assert "--checkpoint" in fail(capsys, 3, *data, "--checkpoint", nowhere)


def test_a_run_that_has_ended_is_reported_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shapes, file = make_shapes(tmp_path / "shapes"), str(tmp_path / "run.safetensors")
    options = ["train", "--data", str(shapes), *SMALL, "--max-steps", "8"]
    ended = run_json(capsys, *options, "--checkpoint", file)

    again = run_json(capsys, *options, "--resume", file)
    assert main([*options, "--resume", file]) == 0
    text = capsys.readouterr().out

    same = ("accuracy", "epochs", "steps", "weights_digest")
    assert [again[key] for key in same] == [ended[key] for key in same]
    assert again["step_ms_median"] is None
    assert text.startswith("goes on after 8 steps\n")
    assert ended["weights_digest"] in text


def test_a_run_that_is_kept_is_not_started_over(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    options = ["train", "--data", str(make_shapes(tmp_path / "shapes")), *SMALL, "--epochs", "1"]
    run_json(capsys, *options, "--checkpoint", str(file))
    kept = file.read_bytes()

    assert f"--resume {file}" in fail(capsys, 3, *options, "--checkpoint", str(file))
    assert f"--resume {file} --save FILE" in fail(capsys, 3, "evaluate", str(file), *options[1:3])
    assert file.read_bytes() == kept


@pytest.mark.parametrize("pair", [("--checkpoint", "--save"), ("--resume", "--save"), ("--save", "--json")])
def test_two_results_never_share_a_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, pair: tuple[str, str]
) -> None:
    data = ["train", "--data", str(make_shapes(tmp_path / "shapes")), *SMALL]
    (tmp_path / "deeper").mkdir()

    message = fail(capsys, 3, *data, pair[0], str(tmp_path / "a"), pair[1], str(tmp_path / "deeper" / ".." / "a"))

    assert f"{pair[0]} and {pair[1]} are the same file" in message


def test_what_differs_is_told_briefly(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = str(tmp_path / "run.safetensors")
    options = ["train", "--data", str(make_shapes(tmp_path / "shapes")), "--batch-size", "10"]
    run_json(capsys, *options, "--widths", "16", "--max-steps", "3", "--checkpoint", file)

    message = fail(capsys, 3, *options, "--widths", "17", "--resume", file)

    assert "max_steps was 3, is not given, model was " in message
    assert mlp((5, 4), (17,), 2).digest[:12] in message
    assert len(message) < 300 + len(file)


def test_restoring_moves_every_persistent_tensor(tmp_path: Path) -> None:
    spec = mlp((5, 4), (6,), 2)
    rng = np.random.default_rng(0)
    first, second = (Engine(spec, batch_size=4, preset=resolve_preset("bitfleet", "latent8m"), seed=s) for s in (1, 2))
    first.labels[:] = [0, 1, 0, 1]
    for _ in range(3):
        first.input[:] = rng.integers(0, 256, first.input.shape)
        first.step()
    tensors, counters = first.training_state()

    second.load_training_state(tensors, counters)

    again, same = second.training_state()
    assert same == counters
    assert counters["steps_done"] == 3
    assert all(np.array_equal(again[name], tensors[name]) for name in tensors)
    persistent = {e.name for e in first.plan.entries if len(e.phases) == 5 and e.role in ("weights", "momenta", "norm")}
    assert set(tensors) == persistent

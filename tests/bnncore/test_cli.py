"""The command ``bitfleet`` as scripts and people use it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnncore.checkpoint import load_checkpoint, save_checkpoint
from bnncore.cli.main import main
from bnncore.cli.options import parse_bytes
from bnncore.cli.output import format_bytes
from bnncore.data import write_idx
from bnncore.engine import isa_selected
from bnncore.optimizer import resolve_preset
from bnncore.state import weights_digest, without_statistics
from bnncore.zoo import mlp

SMALL = ["--batch-size", "10", "--widths", "16"]


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """No data folder from outside."""
    monkeypatch.delenv("BITFLEET_DATA", raising=False)


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """An idx folder: bright images are "sun", dark ones "moon"."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 60), ("test", 25)):
        labels = np.arange(count) % 2
        images = generator.integers(0, 100, (count, 5, 4)) + 150 * (1 - labels)[:, None, None]
        write_idx(tmp_path / "shapes", images.astype(np.uint8), labels, split, classes=["sun", "moon"])  # type: ignore[arg-type]
    return tmp_path / "shapes"


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
    command = ["train", "--data", str(shapes), *SMALL, "--epochs", "2", "--json", "-"]
    portable = {**os.environ, "BITFLEET_ISA": "portable"}

    digests = {run_json(capsys, *command[:-2], "--threads", threads)["weights_digest"] for threads in "12"}
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
    from bnncore.engine import Engine

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


@pytest.mark.slow
def test_digits_are_learnt_within_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    result = run_json(capsys, "train", "--dataset", "digits", "--epochs", "20", "--batch-size", "20", "--widths", "128")

    assert result["accuracy"] > 92


@pytest.mark.slow
def test_one_epoch_of_mnist_is_learnt(capsys: pytest.CaptureFixture[str], data_root: Path) -> None:
    result = run_json(capsys, "train", "--dataset", "mnist", "--data", str(data_root), "--epochs", "1")

    assert result["accuracy"] > 90


def test_wrong_data_are_refused_before_training(
    capsys: pytest.CaptureFixture[str], shapes: Path, tmp_path: Path
) -> None:
    train_images = shapes / "train-images-idx3-ubyte"

    assert "does not exist" in fail(capsys, 3, "train", "--data", str(tmp_path / "absent"))
    assert "BITFLEET_DATA" in fail(capsys, 3, "train", "--dataset", "mnist")
    assert "28 x 28" in fail(capsys, 3, "train", "--dataset", "mnist", "--data", str(shapes))
    assert "--batch-size 60" in fail(capsys, 3, "train", "--data", str(shapes), "--batch-size", "61")
    train_images.write_bytes(train_images.read_bytes()[:-1])
    assert str(train_images) in fail(capsys, 3, "train", "--data", str(shapes))


def test_wrong_models_and_presets_are_refused(capsys: pytest.CaptureFixture[str], shapes: Path, tmp_path: Path) -> None:
    data = ["train", "--data", str(shapes)]
    spec = mlp((5, 4), (16,), 2).to_dict()
    spec["layers"][3]["in_features"] = 8
    (tmp_path / "bad.json").write_text(json.dumps(spec))
    (tmp_path / "other.json").write_text(mlp((3, 3), (16,), 2).to_json())

    assert "['mlp'], got 'vgg'" in fail(capsys, 3, *data, "--model", "vgg")
    message = fail(capsys, 3, *data, "--model", str(tmp_path / "bad.json"))
    assert "'dense2' takes 8 features but layer 'dense1' gives 16" in message
    assert "bad.json" in message
    assert "cannot be read" in fail(capsys, 3, *data, "--model", str(tmp_path / "absent.json"))
    assert "[3, 3]" in fail(capsys, 5, *data, "--model", str(tmp_path / "other.json"), "--batch-size", "10")
    assert "--widths" in fail(capsys, 3, *data, "--model", str(tmp_path / "other.json"), "--widths", "3")
    assert "latent8m" in fail(capsys, 3, *data, "--optimizer", "sgd")
    assert "bitfleet" in fail(capsys, 3, *data, "--preset", "magic")


def test_a_model_file_trains(capsys: pytest.CaptureFixture[str], shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(mlp((20,), (8, 8), 2).to_json())

    result = run_json(
        capsys, "train", "--data", str(shapes), "--model", str(tmp_path / "mine.json"), "--batch-size", "10"
    )

    assert result["steps"] == 30


def test_checkpoints_that_cannot_be_evaluated_are_refused(
    capsys: pytest.CaptureFixture[str], shapes: Path, tmp_path: Path
) -> None:
    from bnncore.engine import Engine

    engine = Engine(mlp((5, 4), (16,), 2), batch_size=1)
    saved = tmp_path / "model.safetensors"
    data = ["--data", str(shapes)]
    save_checkpoint(saved, engine.spec, without_statistics(engine.state()))
    assert "no running statistics" in fail(capsys, 3, "evaluate", str(saved), *data)
    save_checkpoint(saved, mlp((4, 4), (16,), 2), Engine(mlp((4, 4), (16,), 2), batch_size=1).state())
    assert "shape [4, 4]" in fail(capsys, 5, "evaluate", str(saved), *data)
    saved.write_bytes(saved.read_bytes()[:-1])
    assert "no valid checkpoint" in fail(capsys, 3, "evaluate", str(saved), *data)
    assert "absent" in fail(capsys, 3, "evaluate", str(tmp_path / "absent"), *data)


@pytest.mark.parametrize("option", ["--json", "--save"])
def test_places_that_cannot_be_written_are_found_before_training(
    capsys: pytest.CaptureFixture[str], shapes: Path, tmp_path: Path, option: str
) -> None:
    (tmp_path / "file").touch()

    for place in (tmp_path / "no" / "result", tmp_path / "file" / "result", tmp_path):
        assert main(["train", "--data", str(shapes), *SMALL, option, str(place)]) == 3
        captured = capsys.readouterr()
        assert f"{option} {place} cannot be written" in captured.err
        assert captured.out == ""  # no epoch was trained
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file", shapes]


def test_a_full_disk_is_found_before_training(tmp_path: Path) -> None:
    """The limit on file sizes plays the full disk: the system refuses the bytes in the same call."""
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "from bnncore.cli.output import check_destination\n"
        "check_destination(sys.argv[1], '--save', 4000)\n"
        "print('4000 bytes fit')\n"
        "check_destination(sys.argv[1], '--save', 6000)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "m")], capture_output=True, text=True, check=False
    )

    assert done.stdout == "4000 bytes fit\n"
    assert f"ConfigurationError: --save {tmp_path / 'm'} cannot be written: File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_devices_are_written_to_and_not_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", "--json", "/dev/null"]) == 0
    assert "cannot be written" in fail(capsys, 3, "memory", "--json", "/dev/full")
    assert Path("/dev/full").is_char_device()


def test_memory_puts_three_algorithms_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    result = run_json(capsys, "memory", "--model", "mlp", "--batch-size", "100", "--optimizer", "latent8")

    assert result["standard"]["total_bytes"] / 2**20 == pytest.approx(7.41, abs=0.006)
    assert result["paper"]["total_bytes"] / 2**20 == pytest.approx(2.66, abs=0.006)
    for column in ("standard", "standard_same_optimizer", "paper", "bitfleet"):
        assert sum(result[column]["variables"].values()) == result[column]["total_bytes"]
    assert result["ratio"] > 12
    assert result["preset_digest"] == resolve_preset(optimizer="latent8").digest


def test_memory_is_readable_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory"]) == 0
    text = capsys.readouterr().out

    assert "mlp 784-256-256-256-256-10, batch 100" in text
    assert "7.41 MiB" in text
    assert "2.66 MiB" in text
    assert "times less than the standard algorithm" in text


def test_a_budget_picks_the_batch_or_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    picked = run_json(capsys, "memory", "--budget", "2MiB")
    kept = run_json(capsys, "memory", "--budget", "2MiB", "--batch-size", "50")

    assert picked["bitfleet"]["total_bytes"] <= picked["budget_bytes"] == 2 << 20
    assert picked["batch_size"] > 100
    assert kept["batch_size"] == 50
    message = fail(capsys, 3, "memory", "--budget", "2MiB", "--batch-size", "30000")
    assert f"the largest that does is {picked['batch_size']}" in message
    assert "What would fit" in fail(capsys, 3, "memory", "--budget", "100KiB")


def test_info_says_what_this_machine_can_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    result = run_json(capsys, "info")
    assert main(["info"]) == 0
    text = capsys.readouterr().out

    assert result["isa"] == isa_selected()
    assert "portable" in result["isa_available"]
    assert result["threads"] >= 1
    assert result["cache"] == os.environ["BITFLEET_CACHE"]
    for value in (result["bitfleet"], result["numpy"], result["isa"], result["cache"]):
        assert value in text


def test_usage_mistakes_end_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        [],
        ["fly"],
        ["train", "--epochs", "0"],
        ["train", "--seed", "-1"],
        ["train", "--widths", "3,x"],
        ["memory", "--budget", "many"],
        ["evaluate"],
    ):
        assert main(arguments) == 2
    assert "usage: bitfleet" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "evaluate", "memory"])
def test_help_teaches_with_examples(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main([command, "--help"]) == 0

    text = capsys.readouterr().out
    assert "examples:" in text
    assert f"bitfleet {command}" in text


def test_help_imports_no_numpy() -> None:
    script = (
        "import sys\nfrom bnncore.cli.main import main\nmain(['train', '--help'])\nsys.exit('numpy' in sys.modules)"
    )

    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)


def test_an_interrupt_ends_with_130_and_no_traceback(shapes: Path, tmp_path: Path) -> None:
    command = ["train", "--data", str(shapes), *SMALL, "--epochs", "1000000", "--json", str(tmp_path / "r.json")]
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "bnncore.cli", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("epoch   1")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)

    assert process.returncode == 130
    assert errors == "bitfleet: interrupted\n"
    assert not (tmp_path / "r.json").exists()


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m bnncore.cli memory | true; exit ${{PIPESTATUS[0]}}"

    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("text", "count"),
    [("500000", 500_000), ("64MiB", 64 << 20), ("64m", 64 << 20), ("1.5 GiB", 3 << 29), ("2KB", 2000), ("7b", 7)],
)
def test_amounts_of_memory_are_read_as_people_write_them(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (7_768_896, "7.41 MiB"), (3 << 34, "48.0 GiB")],
)
def test_amounts_of_memory_are_written_for_people(count: int, text: str) -> None:
    assert format_bytes(count) == text

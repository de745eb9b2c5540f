"""What goes wrong at the command line is told in one line, with the right exit code, before work starts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bnncore.checkpoint import save_checkpoint
from bnncore.cli.main import main
from bnncore.engine import Engine
from bnncore.state import without_statistics
from bnncore.zoo import mlp
from tests.bnncore.cli_runs import SMALL, fail, make_shapes
from tests.patience import LIMIT_S


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """No data folder from outside."""
    monkeypatch.delenv("BITFLEET_DATA", raising=False)


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """An idx folder with two classes."""
    return make_shapes(tmp_path / "shapes")


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

    assert "whose name ends in .json, got 'vgg'" in fail(capsys, 3, *data, "--model", "vgg")
    message = fail(capsys, 3, *data, "--model", str(tmp_path / "bad.json"))
    assert "'dense2' takes 8 features but layer 'dense1' gives 16" in message
    assert "bad.json" in message
    assert "cannot be read" in fail(capsys, 3, *data, "--model", str(tmp_path / "absent.json"))
    assert "[3, 3]" in fail(capsys, 5, *data, "--model", str(tmp_path / "other.json"), "--batch-size", "10")
    assert "--widths" in fail(capsys, 3, *data, "--model", str(tmp_path / "other.json"), "--widths", "3")
    assert "latent8m" in fail(capsys, 3, *data, "--optimizer", "sdg")
    assert "bitfleet" in fail(capsys, 3, *data, "--preset", "magic")
    assert "layer 'conv2' needs a map of 3 x 3" in fail(capsys, 3, *data, "--model", "cnv", "--convs-per-stage", "1")
    assert "Choose cnv, binarynet or mlp" in fail(
        capsys, 3, "memory", "--model", "sensor1d", "--input-shape", "32,32,3"
    )


def test_checkpoints_that_cannot_be_evaluated_are_refused(
    capsys: pytest.CaptureFixture[str], shapes: Path, tmp_path: Path
) -> None:
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


def test_usage_mistakes_end_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ([], "COMMAND"),
        (["fly"], "'fly'"),
        (["train", "--epochs", "0"], "--epochs: must be at least 1, got 0"),
        (["train", "--epochs", "ten"], "--epochs: must be an integer, got 'ten'"),
        (["train", "--seed", "-1"], "--seed: must be in [0, 2**63), got -1"),
        (["train", "--widths", "3,x"], "--widths: must be positive integers such as 64,128, got '3,x'"),
        (["memory", "--widths", "0"], "--widths: must be positive integers such as 64,128, got '0'"),
        (["memory", "--budget", "many"], "--budget: must be an amount such as 64MiB"),
        (["evaluate"], "CHECKPOINT"),
    ):
        assert main(arguments) == 2
        errors = capsys.readouterr().err
        assert "usage: bitfleet" in errors
        assert message in errors


def test_an_interrupt_ends_with_130_and_no_traceback(shapes: Path, tmp_path: Path) -> None:
    command = ["train", "--data", str(shapes), *SMALL, "--epochs", "1000000", "--json", str(tmp_path / "r.json")]
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "bnncore.cli", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("epoch   1")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=LIMIT_S)

    assert process.returncode == 130
    assert errors == "bitfleet: interrupted\n"
    assert not (tmp_path / "r.json").exists()

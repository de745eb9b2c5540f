"""Event files, read back by TensorBoard's own reader."""

import math
import re
import resource
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bnncore.cli.main import main
from bnncore.errors import ConfigurationError
from bnncore.tensorboard import EventWriter


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read every scalar of the event files in a folder: (step, value) by tag."""
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "new" / "run") as writer:
        writer.add(0, {"loss/train": 2.5, "a tag, with æ": -1e30})
        writer.add(300, {"loss/train": 0.125})
        writer.add(2**40, {"loss/train": math.inf})
        writer.flush()

        scalars = read(tmp_path / "new" / "run")

    assert scalars["loss/train"] == [(0, 2.5), (300, 0.125), (2**40, math.inf)]
    ((step, value),) = scalars["a tag, with æ"]
    assert step == 0
    assert value == pytest.approx(-1e30, rel=1e-6)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigurationError, match=re.escape(str(tmp_path / "file"))):
        EventWriter(tmp_path / "file" / "run")


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = EventWriter(tmp_path)
    writer.add(1, {"a": 1.0})
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))  # as far as a file goes, for a moment
    try:
        with pytest.raises(ConfigurationError, match=f"cannot be written to {re.escape(str(tmp_path))}: .*too large"):
            writer.flush()
        with pytest.raises(ConfigurationError, match="cannot be written to"):
            writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_training_run_is_written_step_by_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--dataset digits --widths 16 --batch-size 50 --epochs 2"

    assert main(["train", *options.split(), "--tensorboard", str(tmp_path)]) == 0

    scalars = read(tmp_path)
    steps = len(scalars["loss/step"])
    assert [step for step, _ in scalars["loss/step"]] == list(range(1, steps + 1))
    assert [step for step, _ in scalars["accuracy/test"]] == [steps // 2, steps]
    told = [float(text) for text in re.findall(r"test +([\d.]+) %", capsys.readouterr().out)]
    assert [round(value, 2) for _, value in scalars["accuracy/test"]] == told
    assert set(scalars) == {"loss/step", "loss/train", "loss/test", "accuracy/train", "accuracy/test"}

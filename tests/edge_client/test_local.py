"""What a device's owner does without a coordinator: try and predict, with the commands themselves."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnncore.checkpoint import load_checkpoint, save_checkpoint
from bnncore.state import without_statistics
from edge_client.cli import main
from edge_client.local.confusion import confusion_of, render_confusion

CLASSES = {"red": (220, 30, 30), "blue": (30, 30, 220)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pictures of a colour with noise, in two class folders."""
    image = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("pictures")
    for name, colour in CLASSES.items():
        (root / name).mkdir()
        for number in range(20):
            pixels = np.clip(np.array(colour) + random.integers(-30, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
            image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def ask(capsys: pytest.CaptureFixture[str], *command: object) -> Any:
    assert main([*map(str, command), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_table_is_learnt_by_the_range_that_it_lies_in_and_new_rows_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{sign * (1 + number % 7):.1f},{number % 5},{name}" for number in range(200)
            for sign, name in ((-0.1, "low"), (0.1, "high"))]  # fmt: skip
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text("\n".join(["a,b,label", *rows, ""]))
    (tmp_path / "new.csv").write_text("-0.6,2\n0.6,2\n")

    trial = ("try", "--data", tmp_path / "data", "--minutes", "0.5", "--state", tmp_path / "state")
    assert main(list(map(str, trial))) == 0
    capsys.readouterr()
    found = ask(capsys, "predict", tmp_path / "new.csv", "--state", tmp_path / "state")["predictions"]

    assert [one["class"] for one in found] == ["low", "high"]


def test_a_folder_of_pictures_is_learnt_and_new_ones_are_named(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITFLEET_CACHE", str(tmp_path / "cache"))
    state = tmp_path / "state"

    assert main(["try", "--data", str(pictures), "--model", "mlp", "--minutes", "0.5", "--state", str(state)]) == 0
    text = capsys.readouterr().out
    wanted = {name: pictures / name / "3.png" for name in CLASSES}
    facts = ask(capsys, "predict", *wanted.values(), "--state", state)
    assert main(["predict", str(wanted["blue"]), "--state", str(state)]) == 0
    line = capsys.readouterr().out

    assert "accuracy  100.0 %" in text
    assert "0 blue" in text
    assert max(map(len, text.splitlines()[-3:])) <= 80
    assert [one["class"] for one in facts["predictions"]] == list(CLASSES)
    for one in facts["predictions"]:
        assert sum(one["scores"].values()) == pytest.approx(1, abs=1e-4)
    assert line.startswith(f"{wanted['blue']}: blue ")
    assert facts["model"] == str(state / "try.safetensors")

    # What cannot be classified says why.
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    sound, words_only, empty = tmp_path / "sound.wav", tmp_path / "words.csv", tmp_path / "empty.csv"
    for file, text in ((sound, "RIFF"), (words_only, "red,green\n"), (empty, "")):
        file.write_text(text)
    for file, words in (
        (broken, "cannot be read as a picture"),
        (sound, "neither a picture nor a file of rows"),
        (tmp_path / "gone.csv", f"{tmp_path / 'gone.csv'} does not exist"),
        (words_only, "must be numbers, 3072 a row"),
        (empty, f"{empty} has no rows"),
    ):
        assert main(["predict", str(file), "--state", str(state)]) != 0
        assert words in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setattr("bnncore.data.image_reader.importlib.util.find_spec", lambda name: None)
    assert main(["predict", str(wanted["red"]), "--state", str(state)]) != 0
    assert "pip install 'bitfleet[images]'" in capsys.readouterr().err


def test_rows_of_numbers_are_learnt_too(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = ("--state", tmp_path / "state")
    facts = ask(capsys, "try", "--data", data_dir, "--minutes", "0.02", *state)
    bright = np.full((2, 8, 8), 20, np.uint8)
    bright[0, 0:3, 2:6] = 200
    bright[1, 4:7, 2:6] = 200
    np.savetxt(tmp_path / "rows.csv", bright.reshape(2, 64), fmt="%d", delimiter=",")
    np.save(tmp_path / "one.npy", bright[0])

    found = ask(capsys, "predict", tmp_path / "rows.csv", tmp_path / "one.npy", *state)["predictions"]

    assert (facts["examples"] + facts["held_out"], facts["classes"]) == (60, ["a", "b", "c"])
    assert np.array(facts["confusion"]).sum() == facts["held_out"]
    assert [one["source"] for one in found] == [
        f"{tmp_path}/rows.csv:1",
        f"{tmp_path}/rows.csv:2",
        f"{tmp_path}/one.npy",
    ]
    assert found[0]["scores"] == found[2]["scores"]
    np.savetxt(tmp_path / "real.csv", bright.reshape(2, 64) / 255, delimiter=",")
    assert main(["predict", str(tmp_path / "real.csv"), *map(str, state)]) != 0
    assert "whole numbers from 0 to 255" in capsys.readouterr().err
    picture = tmp_path / "picture.png"
    assert main(["predict", str(picture), *map(str, state)]) != 0
    assert str(picture) in capsys.readouterr().err


def test_what_is_no_model_here_is_told(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = ("--state", str(tmp_path / "state"))
    assert main(["predict", "a.png", *state]) == 3
    assert "there is no model" in capsys.readouterr().err
    assert main(["try", "--data", str(data_dir), "--memory-budget", "10KiB", *state]) == 3
    assert "Choose a smaller one" in capsys.readouterr().err
    ask(capsys, "try", "--data", data_dir, "--minutes", "0.01", *state)
    whole = load_checkpoint(tmp_path / "state" / "try.safetensors")
    save_checkpoint(tmp_path / "bare.safetensors", whole.spec, without_statistics(whole.state))
    assert main(["predict", "a.csv", "--model", str(tmp_path / "bare.safetensors"), *state]) != 0
    assert "has no running statistics" in capsys.readouterr().err


def test_many_classes_are_folded_into_eighty_columns() -> None:
    truth = np.arange(600, dtype=np.int32) % 30
    told = np.where((truth == 7) | (truth == 21), 3, truth).astype(np.int32)
    names = [f"a class with a long name {number}" for number in range(30)]

    counts = confusion_of(truth, told, 30)
    text = render_confusion(counts, names)

    lines = text.splitlines()
    assert len(lines) == 11
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("7 a class") and line.endswith(" 0 %") for line in lines)
    assert lines[-1].startswith("all others")
    assert counts.sum() == 600
    few = render_confusion(counts[:4, :4], names[:4]).splitlines()
    assert len(few) == 5

"""Data sets of other packages: the one of docs/plugin.md, and those that fail; and the writer for what measures."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from bnncore.data import SampleWriter, open_dataset
from bnncore.errors import DataError

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "plugin.md").read_text()


def install(site: Path, modules: dict[str, str], plugins: dict[str, str], name: str = "bitfleet-vibration") -> None:
    """Lay a package out as pip does."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{key} = {value}" for key, value in plugins.items()]
    (info / "entry_points.txt").write_text("\n".join(["[bitfleet.datasets]", *lines]) + "\n")
    for module, code in modules.items():
        (site / f"{module}.py").write_text(code)


def block(language: str, before: str = "") -> str:
    """Give a block of the page."""
    match = re.search(rf"{re.escape(before)}\s*(?:<!--[^>]*-->\s*)?```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert match is not None
    return match[1]


def record(folder: Path, count: int = 40) -> None:
    random = np.random.default_rng(1)
    with SampleWriter(folder, samples_per_file=16) as writer:
        for number in range(count):
            writer.add(random.normal(0, 1, (128, 3)).astype(np.float32), "shaking" if number % 2 else "idle")


def run_beside_the_plug_in_of_the_page(folder: Path, *words: str) -> str:
    """Run a module where the page's package is installed, on data as the page's writer leaves; gives its output."""
    if not (folder / "site").exists():
        project = tomllib.loads(block("toml"))["project"]
        modules = {"bitfleet_vibration": block("python", "`bitfleet_vibration.py`")}
        install(folder / "site", modules, project["entry-points"]["bitfleet.datasets"], project["name"])
        record(folder / "data")
    return subprocess.run(
        [sys.executable, "-P", "-m", *words, "--dataset", "vibration", "--data", str(folder / "data")],
        env={**os.environ, "PYTHONPATH": str(folder / "site")},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def test_the_plug_in_of_the_page_is_trained_on_and_tested_with(tmp_path: Path) -> None:
    saved = str(tmp_path / "model.safetensors")

    train = ("train", "--model", "sensor1d", "--batch-size", "10", "--max-steps", "2", "--save", saved, "--json", "-")
    trained = json.loads(run_beside_the_plug_in_of_the_page(tmp_path, "bnncore.cli", *train))
    again = json.loads(run_beside_the_plug_in_of_the_page(tmp_path, "bnncore.cli", "evaluate", saved, "--json", "-"))

    assert trained["steps"] == 2
    assert again["accuracy"] == trained["accuracy"]


def test_the_plug_in_of_the_page_is_a_data_set_of_the_device(tmp_path: Path) -> None:
    survey = json.loads(run_beside_the_plug_in_of_the_page(tmp_path, "edge_client.inspect"))

    assert (survey["classes"], survey["input_shape"]) == (["idle", "shaking"], [128, 3])
    assert 25 <= survey["num_examples"] < 40  # without the test split
    assert survey["needs_input_range"] is False


def test_whatever_goes_wrong_in_a_plug_in_is_an_error_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = {
        "raises": ("raise OSError('no camera')", "fails on the train split: OSError: no camera"),
        "leaves": ("raise SystemExit(1)", "SystemExit: 1"),
        "nothing": ("return None", "must return a bnncore.data.Dataset, got NoneType"),
        "says": ("from bnncore.errors import DataError; raise DataError('plug it in')", "^plug it in$"),
    }
    code = "".join(f"def {name}(root, split):\n    {body}\n" for name, (body, _) in failures.items())
    plugins = {name: f"faulty:{name}" for name in failures} | {"absent": "not_there:open"}
    install(tmp_path, {"faulty": code}, plugins, "bitfleet-faulty")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("BITFLEET_DATA", raising=False)

    for name, (_, words) in failures.items():
        with pytest.raises(DataError, match=words):
            open_dataset(name, None, split="train")
    with pytest.raises(DataError, match=r"plug-in bitfleet-faulty 1\.0, not_there:open fails .*ModuleNotFoundError"):
        open_dataset("absent", None, split="train")
    with pytest.raises(DataError, match=r"must be one of \[.*'cifar10'.*'raises'.*\], got 'other'"):
        open_dataset("other", None, split="train")


def test_the_writer_keeps_the_newest_samples_while_the_disk_takes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, most = tmp_path / "samples", 10 * 3
    with SampleWriter(folder, samples_per_file=3) as writer:
        folder.rename(tmp_path / "pulled out")
        for number in range(most + 7):
            with pytest.raises(FileNotFoundError) if number >= 2 else contextlib.nullcontext():
                writer.add(np.full(4, number, np.int32), "a")
        (tmp_path / "pulled out").rename(folder)
        writer.add(np.full(4, most + 7, np.int32), "a")
        dropped = writer.num_dropped
        writer.add(np.full(4, 0, np.int32), "a")

    files = [np.load(path)["x"][:, 0].tolist() for path in sorted(folder.glob("*.npz"))]
    assert files == [[*range(7, most + 8)], [0]]
    assert dropped == writer.num_dropped == 7
    assert [message.partition(": ")[0] for message in caplog.messages] == [
        f"{folder} cannot be written to, the oldest samples are dropped",
        f"{folder} is written to again; 7 samples were dropped meanwhile",
    ]


def test_the_writer_keeps_within_its_part_of_the_disk(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("left alone")
    sample = np.zeros((100, 10), np.float32)
    with SampleWriter(tmp_path, max_bytes=20_000, samples_per_file=2) as writer:
        for number in range(13):
            writer.add(sample + number, "a")
            sample[0, 0] = 7  # the writer has a copy
        assert sum(path.stat().st_size for path in tmp_path.glob("*.npz")) <= 20_000
        with pytest.raises(DataError, match=r"must be float32 \[100, 10\] as those before it, got float32 \[3\]"):
            writer.add(np.zeros(3, np.float32), "a")
        with pytest.raises(DataError, match="must be numbers with a label"):
            writer.add(sample, "")

    assert (tmp_path / "own.txt").exists()
    kept = [np.load(path)["x"][:, 1, 0].tolist() for path in sorted(tmp_path.glob("*.npz"))]
    assert kept == [[10.0, 11.0], [12.0]]
    (future := tmp_path / f"{10**18 * 9:020d}.npz").write_bytes(b"")
    with SampleWriter(tmp_path) as writer:  # the clock was set back
        writer.add(sample, "b")
    assert sorted(tmp_path.glob("*.npz"))[-1] > future
    with pytest.raises(DataError, match="at least 1"):
        SampleWriter(tmp_path, max_bytes=0)

"""``bitfleet bench``: what it reports, what it refuses, and what becomes of a worker that ends early. Never times."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnncore.bench.compare import percentile
from bnncore.bench.process import Worker, WorkerFailed
from bnncore.bench.samples import make_batches
from bnncore.bench.sides import EngineSide
from bnncore.cli.main import main
from bnncore.engine import Engine, isa_selected
from bnncore.errors import ConfigurationError
from bnncore.optimizer import resolve_preset
from bnncore.zoo import mlp, resnete18
from tests.bnncore.cli_runs import fail, run_json
from tests.patience import LIMIT_S

SMALL = ("bench", "--widths", "16", "--batch-size", "10", "--steps", "2", "--rounds", "3")
HAS_TORCH = importlib.util.find_spec("torch") is not None


def engine_side(**changes: Any) -> dict[str, Any]:
    side = {"kind": "engine", "spec": mlp(widths=(8,)).to_json(), "preset": "bitfleet", "optimizer": "latent8"}
    return {**side, "batch_size": 4, "threads": 1, "seed": 0, "keep_products": False, **changes}


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def check_side(side: dict[str, Any]) -> None:
    assert 0 < side["step_ms_p10"] <= side["step_ms_median"] <= side["step_ms_p90"]
    assert side["steps"] == 6
    assert 0 <= side["peak_bytes"] < side["process_peak_bytes"]


def test_bench_alone_reports_one_side(capsys: pytest.CaptureFixture[str]) -> None:
    result = run_json(capsys, *SMALL)

    check_side(result["bitfleet"])
    assert (result["model"], result["batch_size"], result["threads"]) == ("mlp", 10, 1)
    assert result["preset_digest"] == resolve_preset().digest
    assert result["isa"] == isa_selected()
    assert 1e8 < result["machine"]["clock_hz"] < 1e10
    assert result["energy"]["modelled"]["bitfleet"]["macs"] > 0
    assert result["energy"]["measured_by"]
    assert "speedup" not in result
    assert set(result["bitfleet"]["phases"]) <= {"forward", "recompute", "grad_w", "grad_x", "rest"}
    for phase in result["bitfleet"]["phases"].values():
        assert phase["ms"] >= 0
    layers = result["bitfleet"]["layers"]
    assert len({layer["name"] for layer in layers}) == len(layers) > 1
    for name in ("forward", "grad_x"):
        total = sum(layer["phases"][name]["ms"] for layer in layers)
        assert total == pytest.approx(result["bitfleet"]["phases"][name]["ms"])


@pytest.mark.parametrize("other", ["standard", "paper"])
def test_bench_compares_with_another_preset(capsys: pytest.CaptureFixture[str], other: str) -> None:
    result = run_json(capsys, *SMALL, "--against", other)

    check_side(result["bitfleet"])
    check_side(result[other])
    assert result["against"] == other
    assert len(result["ratios"]) == 3
    assert result["speedup"] == sorted(result["ratios"])[1]
    least = result[other]["peak_bytes"]
    assert result["memory_ratio"] == pytest.approx(least / max(1, result["bitfleet"]["peak_bytes"]))
    assert set(result["energy"]["modelled"]) == {"bitfleet", other, "source"}


def test_bench_times_residual_networks_and_models_nothing_of_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "model.json"
    file.write_text(resnete18((8, 8, 3), (4, 8), 2, 3).to_json())
    small = ("bench", "--model", str(file), *SMALL[3:])

    result = run_json(capsys, *small, "--against", "standard")
    assert main([*small, "--preset", "standard"]) == 0

    check_side(result["bitfleet"])
    check_side(result["standard"])
    assert result["memory_ratio"] > 0
    assert result["bitfleet"]["layers"] == []
    assert result["energy"]["modelled"] is None
    text = capsys.readouterr().out
    assert "resnete18, batch 10, preset standard (adam)" in text
    assert "energy a step: not modelled" in text
    assert "is a residual network" in fail(capsys, 3, *small, "--pi")
    assert "trains chains of binary blocks only" in fail(capsys, 3, *small, "--preset", "paper")


@pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")
def test_bench_compares_with_torch(capsys: pytest.CaptureFixture[str]) -> None:
    result = run_json(capsys, *SMALL, "--against", "torch")

    check_side(result["torch"])
    assert set(result["torch"]["variants"]) == {"eager", "fused Adam", "compiled"}
    assert "step_ms_min" in result["torch"]["variants"][result["torch"]["variant"]]
    assert result["speedup"] > 0
    assert result["memory_ratio"] > 0


@pytest.mark.skipif(HAS_TORCH, reason="torch is installed")
def test_without_torch_bench_says_what_to_install(capsys: pytest.CaptureFixture[str]) -> None:
    assert "pip install 'bitfleet[torch]'" in fail(capsys, 3, *SMALL, "--against", "torch")


def test_bench_is_readable_and_drawn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "bench.svg"

    assert main([*SMALL, "--against", "standard", "--plot", str(picture)]) == 0

    text = capsys.readouterr().out
    assert "mlp, batch 10, preset bitfleet (latent8)" in text
    assert re.search(r"times (faster than|as fast as) standard \(median of 3 pairs", text)
    assert "energy a step, modelled" in text
    assert f"drawn to {picture}" in text
    drawn = re.findall(r"<!-- (.*?) -->", picture.read_text())  # matplotlib repeats each line of text in a comment
    assert any(line.startswith("mlp: a training step with a batch of 10") for line in drawn)
    assert {"ms a step", "GMAC/s", "products a byte moved"} <= set(drawn)


def test_boards_are_modelled_without_measuring(capsys: pytest.CaptureFixture[str]) -> None:
    result = run_json(capsys, "bench", "--pi", "--model", "binarynet", "--batch-size", "40")
    assert main(["bench", "--pi", "--batch-size", "200"]) == 0
    text = capsys.readouterr().out

    assert result["paper"] == {"seconds": 121.2, "joules": 136.53}
    assert {"Raspberry Pi 3B+", "Raspberry Pi 4", "Raspberry Pi 5"} == set(result["boards"])
    assert "MODELLED" in text
    assert "1.42" in text


def test_bench_refuses_what_cannot_be(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = str(tmp_path / "a.png")
    assert "--pi only models" in fail(capsys, 3, "bench", "--pi", "--against", "standard")
    assert "--pi only models" in fail(capsys, 3, "bench", "--pi", "--plot", picture)
    assert "Leave --preset out" in fail(capsys, 3, "bench", "--pi", "--preset", "paper")
    assert "the same file" in fail(capsys, 3, *SMALL, "--plot", picture, "--json", picture)
    assert "must end in .png" in fail(capsys, 3, *SMALL, "--plot", str(tmp_path / "a.xyz"))
    assert "batch_size must lie in" in fail(capsys, 3, "bench", "--batch-size", "1000000")
    assert main(["bench", "--against", "tensorflow"]) == 2
    assert main(["bench", "--rounds", "0"]) == 2


def test_without_matplotlib_bench_refuses_before_it_measures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)

    assert "pip install 'bitfleet[plot]'" in fail(capsys, 3, "bench", "--plot", str(tmp_path / "a.png"))


def test_a_worker_trains_and_tells() -> None:
    with Worker("bitfleet", engine_side()) as worker:
        first = worker.ask("run", steps=3)
        memory = worker.ask("memory")
        clock = worker.ask("clock")

        assert worker.about["isa"] == isa_selected()
        assert len(first["step_ms"]) == 3
        assert first["loss"] > 0
        assert memory["process_peak_bytes"] == memory["before_bytes"] + memory["peak_bytes"]
        assert clock["clock_hz"] > 1e8


def test_a_worker_takes_nothing_of_the_folder_where_it_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('as a checkout, whose packages have no native module')")
    monkeypatch.chdir(tmp_path)

    with Worker("bitfleet", engine_side()) as worker:
        assert worker.about["isa"] == isa_selected()


def test_phases_are_asked_of_the_engine_where_it_tells_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(Engine, "reset_phases", lambda engine: asked.append("reset"), raising=False)
    monkeypatch.setattr(Engine, "phase_seconds", lambda engine: {"forward": 0.25}, raising=False)
    side = EngineSide(mlp(widths=(8,)), resolve_preset(), 4, 1)
    side.build()

    side.reset_phases()

    assert side.phase_seconds() == {"forward": 0.25}
    assert asked == ["reset"]


def test_a_worker_that_crashes_is_reported() -> None:
    crashes = "import sys; sys.stdin.readline(); raise RuntimeError('the disk is on fire')"

    with pytest.raises(
        WorkerFailed, match=r"runs torch ended early \(exit code 1\): RuntimeError: the disk is on fire"
    ):
        Worker("torch", {}, command=python(crashes))


def test_a_worker_that_is_killed_is_reported() -> None:
    dies = (
        "import os, sys; print('{}', flush=True); sys.stdin.readline(); sys.stdin.readline(); os.kill(os.getpid(), 9)"
    )

    with Worker("paper", {}, command=python(dies)) as worker, pytest.raises(WorkerFailed, match="when memory runs out"):
        worker.ask("run", steps=1)


def test_a_worker_that_hangs_is_given_up() -> None:
    hangs = "import time; time.sleep(60)"

    with pytest.raises(WorkerFailed, match="gave no answer within"):
        Worker("torch", {}, timeout_s=0.2, command=python(hangs))


def test_a_workers_refusal_is_the_users_error() -> None:
    with pytest.raises(ConfigurationError, match="preset 'standard' trains with one of"):
        Worker("standard", engine_side(preset="standard", optimizer="bop"))


def test_a_worker_ends_when_its_parent_does() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bnncore.bench.worker"], input="", timeout=LIMIT_S, check=False, text=True
    )

    assert done.returncode == 0


def test_samples_can_be_learned_and_are_the_same_for_both_sides() -> None:
    first, again = (make_batches(mlp(), batch_size=50, count=2, seed=3) for _ in range(2))

    for (samples, labels), (samples_again, labels_again) in zip(first, again, strict=True):
        assert np.array_equal(samples, samples_again)
        assert np.array_equal(labels, labels_again)
        assert samples.shape == (50, 784)
        same = labels[:, None] == labels[None, :]
        distance = np.abs(samples[:, None].astype(int) - samples[None].astype(int)).mean(axis=2)
        assert distance[same].max() < distance[~same].min()


def test_percentiles_are_interpolated() -> None:
    values = [4.0, 1.0, 3.0, 2.0, 5.0]

    assert percentile(values, 50) == 3.0
    assert percentile(values, 10) == pytest.approx(1.4)
    assert percentile(values, 100) == 5.0
    assert percentile([7.0], 90) == 7.0

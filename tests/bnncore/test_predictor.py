"""Evaluation without training: the same results as the engine's, in the memory of bits."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bnncore.engine import Engine, isa_available
from bnncore.errors import BudgetError, DataError, ShapeError
from bnncore.optimizer import resolve_preset
from bnncore.plan import PlanEntry
from bnncore.predictor import Predictor
from bnncore.spec import ModelSpec
from bnncore.state import without_statistics
from bnncore.zoo import binarynet, cnv, mlp, sensor1d
from tests.bnncore.cli_runs import make_shapes, run_json

SPECS = [
    mlp((9, 7), (70, 33), 5),
    cnv((14, 13, 2), (20, 70), 1, (33,), 4),
    binarynet((9, 11), (65, 17), 2, (), 3),
    sensor1d((24, 3), (16, 8), 5, (10,), 3),
]


def trained(spec: ModelSpec, preset_name: str, optimizer: str | None = None) -> Engine:
    engine = Engine(spec, batch_size=13, preset=resolve_preset(preset_name, optimizer), seed=3)
    rng = np.random.default_rng(0)
    for _ in range(4):
        engine.input[:] = rng.integers(0, 256, engine.input.shape)
        engine.labels[:] = rng.integers(0, spec.classes, 13)
        engine.step()
    return engine


@pytest.mark.parametrize("isa", isa_available())
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("optimizer", ["latent8", "bop", "adam"])
def test_it_gives_what_the_engine_gives(
    isa: str, spec: ModelSpec, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITFLEET_ISA", isa)
    engine = trained(spec, "bitfleet", optimizer)
    for threads in (1, 3):
        predictor = Predictor(spec, engine.state(), batch_size=20, threads=threads)
        predictor.input[:13] = engine.input
        predictor.labels[:13] = engine.labels

        assert predictor.evaluate_batch(13) == engine.evaluate_batch(13)
        assert np.array_equal(predictor.predict_batch(13), engine.predict_batch(13))


@pytest.mark.parametrize("preset", ["standard", "paper"])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_it_reads_what_the_other_algorithms_trained(spec: ModelSpec, preset: str) -> None:
    engine = trained(spec, preset)
    predictor = Predictor(spec, engine.state(), batch_size=13)
    predictor.input[:] = engine.input
    predictor.labels[:] = engine.labels

    # Their statistics are means of float32 numbers, the thresholds here integers: a value within a rounding error of a
    # threshold may fall on the other side, which moves a logit by a step of its norm.
    assert predictor.evaluate_batch(13).loss == pytest.approx(engine.evaluate_batch(13).loss, rel=0.1)
    assert np.mean(predictor.predict_batch(13) == engine.predict_batch(13)) >= 12 / 13


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_needed_at_once_does_not_overlap(spec: ModelSpec, threads: int) -> None:
    plan = Predictor(spec, trained(spec, "bitfleet").state(), batch_size=7, threads=threads).plan

    def together(a: PlanEntry, b: PlanEntry) -> bool:
        return bool(set(a.phases) & set(b.phases))

    for i, a in enumerate(plan.entries):
        assert a.offset + a.num_bytes <= plan.peak_bytes
        for b in plan.entries[:i]:
            apart = a.offset + a.num_bytes <= b.offset or b.offset + b.num_bytes <= a.offset
            assert apart or not together(a, b), f"{a.name} and {b.name}"
    signs = [entry for entry in plan.entries if entry.name.endswith(".signs")]
    scratch = [entry for entry in plan.entries if entry.role == "scratch"]
    assert all(together(a, b) for a, b in pairwise(signs))  # one is read while the next is written
    assert all(together(a, b) for a in signs for b in scratch)


def test_it_takes_the_memory_of_bits_and_of_two_layers() -> None:
    spec = binarynet()
    weights, batch = spec.num_binary_weights / 8, 10
    largest_two = batch * (32 * 32 * 128 + 16 * 16 * 128) / 8  # signs of the first two blocks

    plan = Predictor(spec, Engine(spec, batch_size=1).state(copy=False), batch_size=batch).plan

    assert {entry.role for entry in plan.entries} == {"weights", "norm", "activations", "input", "scratch"}
    assert weights + largest_two < plan.peak_bytes < 1.5 * (weights + largest_two) + (1 << 20)


def test_mistakes_are_told(tmp_path: Path) -> None:
    spec = mlp((4,), (8,), 3)
    state = Engine(spec, batch_size=5).state()
    predictor = Predictor(spec, state, batch_size=5)

    with pytest.raises(ShapeError, match="missing"):
        Predictor(spec, without_statistics(state))
    with pytest.raises(BudgetError, match="batch_size"):
        Predictor(spec, state, batch_size=0)
    with pytest.raises(DataError, match=r"count must lie in \[1, 5\]"):
        predictor.predict_batch(6)
    predictor.labels[:] = 3
    with pytest.raises(DataError, match=r"\[0, 3\)"):
        predictor.evaluate_batch(5)


def test_the_command_evaluates_with_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shapes, saved = make_shapes(tmp_path / "shapes"), tmp_path / "m.safetensors"
    options = ["--data", str(shapes), "--batch-size", "10"]
    trained_result = run_json(capsys, "train", *options, "--widths", "16", "--epochs", "4", "--save", str(saved))

    result = run_json(capsys, "evaluate", str(saved), *options)

    assert result["accuracy"] == trained_result["accuracy"]
    assert result["plan_peak_bytes"] < trained_result["plan_peak_bytes"]

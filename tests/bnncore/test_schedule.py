"""Step-size schedules: their shapes, the same bits everywhere, and that training follows them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnncore.data import open_dataset
from bnncore.engine import Engine
from bnncore.errors import OptimizerError
from bnncore.evaluator import StepResult
from bnncore.schedule import SCHEDULES, Constant, Plateau, Schedule, build_schedule
from bnncore.training import train
from bnncore.zoo import mlp
from tests.bnncore.cli_runs import SMALL, fail, make_shapes, run_json


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """No data folder from outside."""
    monkeypatch.delenv("BITFLEET_DATA", raising=False)


@given(st.integers(1, 10**6), st.floats(0, 1, exclude_max=True))
def test_the_cosine_is_one(total: int, part: float) -> None:
    done = int(part * total)

    assert build_schedule("cosine").scale(done, total) == pytest.approx(
        (1 + math.cos(math.pi * done / total)) / 2, abs=1e-15
    )


@pytest.mark.parametrize("name", ["constant", "cosine", "linear"])
def test_a_schedule_starts_at_1_and_never_rises(name: str) -> None:
    scales = [build_schedule(name).scale(done, 997) for done in range(997)]

    assert scales[0] == 1
    assert scales == sorted(scales, reverse=True)
    assert scales[-1] == (1 if name == "constant" else pytest.approx(0, abs=2e-3))


def test_the_cosine_has_the_same_bits_everywhere() -> None:
    scales = [build_schedule("cosine").scale(done, 12).hex() for done in (1, 2, 5, 7, 11)]

    assert scales == [
        "0x1.f746ea3a45f8bp-1",
        "0x1.ddb3d742c2655p-1",
        "0x1.4241f7064c1a4p-1",
        "0x1.7b7c11f367cb8p-2",
        "0x1.1722b8b740ea0p-6",
    ]


@pytest.mark.parametrize(
    ("losses", "scales"),
    [
        ([5, 4, 3, 2, 1], [1, 1, 1, 1, 1]),
        ([5, 5, 5, 5, 5], [1, 1, 0.5, 0.5, 0.25]),  # an equal loss is no new low
        ([5, 6, 4, 6, 7], [1, 1, 1, 1, 0.5]),  # counted in a row
        ([5, 6, 7, 5.5, 4.9], [1, 1, 0.5, 0.5, 0.5]),  # the low is kept over a halving
        ([math.nan, math.nan], [1, 0.5]),
    ],
)
def test_a_plateau_halves_after_two_epochs_without_a_new_low(losses: list[float], scales: list[float]) -> None:
    schedule = Plateau(2)
    found = []
    for loss in losses:
        schedule.end_epoch(loss)
        found.append(schedule.scale(3, 10))

    assert found == scales


def test_training_asks_before_each_step_and_tells_each_epoch_s_training_loss(tmp_path: Path) -> None:
    class Noting(Constant):
        asked: list[tuple[int, int]]
        losses: list[float]

        def __init__(self) -> None:
            self.asked, self.losses = [], []

        def scale(self, done: int, total: int) -> float:
            self.asked.append((done, total))
            return 1 / (1 + done)

        def end_epoch(self, loss: float) -> None:
            self.losses.append(loss)

    class ScaleEngine(Engine):
        scales: list[float]

        def step(self, step_scale: float = 1.0) -> StepResult:
            self.scales = [*getattr(self, "scales", []), step_scale]
            return super().step(step_scale)

    schedule: Schedule = (noting := Noting())
    with open_dataset("idx", make_shapes(tmp_path), split="train") as dataset:
        engine = ScaleEngine(mlp((5, 4), (8,), 2), batch_size=20)
        result = train(engine, dataset, epochs=2, max_steps=5, seed=0, schedule=schedule)

    assert noting.asked == [(done, 5) for done in range(5)]
    assert engine.scales == [1 / (1 + done) for done in range(5)]
    assert noting.losses == [epoch.loss for epoch in result.epochs]


def test_the_command_takes_every_schedule(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["train", "--data", str(make_shapes(tmp_path)), *SMALL, "--epochs", "8"]

    results = {name: run_json(capsys, *command, "--schedule", name) for name in SCHEDULES}

    assert {name: result["schedule"] for name, result in results.items()} == {name: name for name in SCHEDULES}
    assert run_json(capsys, *command)["weights_digest"] == results["linear"]["weights_digest"]
    assert len({results[name]["weights_digest"] for name in ("constant", "cosine", "linear")}) == 3
    assert (
        run_json(capsys, *command, "--schedule", "plateau", "--patience", "100")["weights_digest"]
        == (results["constant"]["weights_digest"])
    )


def test_mistakes_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OptimizerError, match="'plateau'], got 'step'"):
        build_schedule("step")
    with pytest.raises(OptimizerError, match="at least 1 epoch, got 0"):
        build_schedule("plateau", patience=0)

    assert "patience belongs to" in fail(capsys, 3, "train", "--dataset", "digits", "--patience", "2")

"""Devices that evaluate models on data of their own, in whole simulations."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.patience import LIMIT_S
from tests.server.simulate.federations import outcome, refusal, run, start, wait_for

EVALUATED = ("--local-validation", "0.2", "--statistics", "5", "--alpha", "0.5", "--local-steps", "60")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("evaluated"), *EVALUATED, "--threads", "1")


def test_every_version_is_judged_by_the_devices_too(evaluated: dict[str, Any]) -> None:
    local = evaluated["local_accuracy_by_round"]

    assert len(local) == 3
    assert local[0] < local[-1]
    assert local[-1] > 60


def test_a_killed_simulation_counts_every_judgement_once(tmp_path: Path, evaluated: dict[str, Any]) -> None:
    process = start(*EVALUATED, "--state", str(tmp_path / "work"), json_path=tmp_path / "never.json")
    wait_for(tmp_path / "work", rounds=0, lines=6)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=LIMIT_S)

    result = run(tmp_path, *EVALUATED, "--state", str(tmp_path / "work"), "--shuffle-arrivals", "1")

    assert outcome(result) == outcome(evaluated)


def test_without_statistics_there_is_nothing_to_evaluate_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "set statistics_batches" in refusal(tmp_path, capsys, "--local-validation", "0.2")


PERSONAL = (*EVALUATED, "--local-tensors", "*.beta", "--local-tensors", "dense2.weight")


@pytest.mark.parametrize("how", [("--up", "int8"), ("--recipe", "onebit")], ids=["int8", "onebit"])
def test_personal_tensors_survive_a_kill_and_any_order(
    tmp_path: Path, evaluated: dict[str, Any], how: tuple[str, ...]
) -> None:
    undisturbed = run(tmp_path, *PERSONAL, *how, "--threads", "1")
    process = start(*PERSONAL, *how, "--state", str(tmp_path / "work"), json_path=tmp_path / "never.json")
    wait_for(tmp_path / "work", rounds=0, lines=6)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=LIMIT_S)

    result = run(tmp_path, *PERSONAL, *how, "--state", str(tmp_path / "work"), "--shuffle-arrivals", "1")

    assert outcome(result) == outcome(undisturbed)
    assert undisturbed["digest"] != evaluated["digest"]
    assert undisturbed["bits_per_weight_up"] < evaluated["bits_per_weight_up"]
    assert len(undisturbed["local_accuracy_by_round"]) == 3


def test_poison_leaves_personal_tensors_out_too(tmp_path: Path) -> None:
    attacked = ("--attackers", "1", "--attack", "negate")

    for how in (("--up", "int8"), ("--recipe", "onebit")):
        result = run(tmp_path, *PERSONAL, "--local-tensors", "*.mean*", *how, *attacked, "--rounds", "1")
        assert result["updates"] == 8  # those of the closing exchange hold nothing then, but say how the model does
        assert len(result["local_accuracy_by_round"]) == 1

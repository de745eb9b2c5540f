"""Simulations with secure aggregation: with masks and without, the same sum; stopped and gone on with."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.patience import LIMIT_S
from tests.server.simulate.federations import outcome, run, start, wait_for

SAME = ("accuracy", "accuracy_by_round", "digest", "updates")


@pytest.mark.parametrize(
    "how",
    [
        ("--recipe", "onebit", "--local-validation", "0.2"),
        ("--strategy", "fedadam", "--neighbours", "4", "--devices", "7", "--cohort", "7"),
    ],
    ids=["onebit", "fedadam"],
)
def test_masks_do_not_enter_the_result(tmp_path: Path, how: tuple[str, ...]) -> None:
    masked = run(tmp_path, "--secure", *how, "--threads", "2", "--shuffle-arrivals", "3")
    summed = run(tmp_path, "--secure", "--sum-only", *how, "--threads", "1")

    assert [masked[name] for name in SAME] == [summed[name] for name in SAME]
    assert masked["local_accuracy_by_round"] == summed["local_accuracy_by_round"]
    assert (masked["secure_aggregation"], summed["secure_aggregation"]) == ("masked", "sum only")
    assert masked["bits_per_weight_up"] > summed["bits_per_weight_up"]  # keys and shares


def test_a_simulation_that_was_killed_goes_on_in_its_exchange(tmp_path: Path) -> None:
    options = ("--secure", "--recipe", "onebit", "--threads", "1", "--local-steps", "60")
    undisturbed = run(tmp_path, *options)
    state = tmp_path / "state"
    killed = 0
    for lines in (6, 11, 17):  # of the ledger: 4 updates, and 4 messages of each step
        process = start(*options, "--state", str(state), json_path=tmp_path / "killed.json")
        wait_for(state, rounds=0, lines=lines)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=LIMIT_S)
        killed += process.returncode == -signal.SIGKILL

    again = run(tmp_path, *options, "--state", str(state))

    assert killed
    assert outcome(again) == outcome(undisturbed)


def test_members_that_are_away_are_not_waited_for(tmp_path: Path) -> None:
    result = run(tmp_path, "--secure", "--devices", "8", "--cohort", "8", "--absent", "0.3", "--seed", "2")

    assert len(result["accuracy_by_round"]) == 3
    assert result["updates"] < 8 * 3

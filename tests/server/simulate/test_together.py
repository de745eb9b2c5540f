"""Devices whose updates are added up where they train: the model is that of updates which travel one by one."""

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from server.cli.simulate import add_simulate, build_scenario
from server.simulate.errors import SimulationError
from server.simulate.report import SimulationResult
from server.simulate.run import simulate
from server.simulate.summing import Handed, RoundStart
from server.simulate.trainers import Assignment, ThreadTrainer
from server.storage.state_folder import owned
from tests.server.simulate.federations import SAME, SMALL, STEPS

ONEBIT = ("--recipe", "onebit", "--alpha", "0.5", "--absent", "0.2")
"""What devices keep between rounds counts, and so do who was away and the closing statistics."""


class AddingTrainer(ThreadTrainer):
    """One that adds up; with a work folder, until a sum is kept there and another one is wanted."""

    def __init__(self, fails_in: Path | None = None) -> None:
        super().__init__(threads=2)
        self.adds_up = True
        self.together = 0
        self._fails_in = fails_in

    async def train_together(
        self, start: RoundStart, payloads: Mapping[str, bytes], assignments: Sequence[Assignment]
    ) -> Handed:
        self.together += 1
        if self._fails_in is not None and self.together > 1:
            while not list((self._fails_in / "sums").glob("*.json")):  # noqa: ASYNC110 - on the disk is what counts
                await asyncio.sleep(0.01)
            raise SimulationError("the machine was switched off")
        return await super().train_together(start, payloads, assignments)


def play(state: Path, *options: str, adding: AddingTrainer | None = None) -> SimulationResult:
    parser = argparse.ArgumentParser()
    add_simulate(parser.add_subparsers())
    scenario = build_scenario(parser.parse_args(["simulate", *SMALL, *STEPS, *options]))
    with owned(state):
        return asyncio.run(simulate(scenario, state, open_trainer=lambda *_: adding or ThreadTrainer(2)))


def same(result: SimulationResult) -> list[object]:
    return [getattr(result, name) for name in SAME]


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> SimulationResult:
    return play(tmp_path_factory.mktemp("apart"), *ONEBIT)


def test_sums_are_those_of_the_updates(tmp_path: Path, apart: SimulationResult) -> None:
    adding = AddingTrainer()

    assert same(play(tmp_path, *ONEBIT, adding=adding)) == same(apart)
    assert adding.together > 3  # in each round, by several hands


def test_sums_hold_statistics_and_leave_out_what_devices_keep(tmp_path: Path) -> None:
    own = ("--rounds", "1", "--statistics", "2", "--local-validation", "0.2", "--local-tensors", "*.beta")

    assert same(play(tmp_path / "together", *own, adding=AddingTrainer())) == same(play(tmp_path / "apart", *own))


def test_an_interrupted_round_keeps_its_sums(tmp_path: Path, apart: SimulationResult) -> None:
    with pytest.raises(SimulationError, match="switched off"):
        play(tmp_path / "work", *ONEBIT, adding=AddingTrainer(fails_in=tmp_path / "work"))
    assert list((tmp_path / "work" / "sums").glob("*.json"))

    assert same(play(tmp_path / "work", *ONEBIT, adding=AddingTrainer())) == same(apart)


def test_what_cannot_be_added_up_travels_one_by_one(tmp_path: Path) -> None:
    for options in [("--strategy", "median"), ("--attackers", "1", "--attack", "negate")]:
        adding = AddingTrainer()
        assert play(tmp_path / options[0], "--rounds", "1", *options, adding=adding).updates == 4
        assert adding.together == 0

"""A job from start to end, with nobody disturbing it."""

import subprocess
import sys
from pathlib import Path

from bnncore.checkpoint import load_checkpoint
from tests.e2e.conftest import DEVICES, ROUNDS, FleetFactory
from tests.e2e.processes import Fleet
from tests.patience import LIMIT_S


def test_every_round_is_committed_with_every_device(undisturbed: Fleet) -> None:
    rounds = undisturbed.rounds()

    assert [round_["round"] for round_ in rounds] == list(range(1, ROUNDS + 1))
    assert {(round_["state"], round_["accepted"], round_["attempt"]) for round_ in rounds} == {("COMMITTED", 3, 1)}


def test_the_fleet_learns(undisturbed: Fleet) -> None:
    accuracies = [round_["accuracy"] for round_ in undisturbed.rounds()]

    assert undisturbed.job()["accuracy"] == accuracies[-1] >= 90.0


def test_the_first_model_costs_no_download(undisturbed: Fleet) -> None:
    first, *later = undisturbed.rounds()

    # The task alone; then a byte and a half a weight at most.
    assert first["down_bytes_per_device"] < 4096
    assert all(20_000 < round_["down_bytes_per_device"] < 150_000 for round_ in later)


def test_every_update_that_left_a_device_is_in_its_outbox(undisturbed: Fleet) -> None:
    for name in DEVICES:
        sent = [(row["round"], row["status"], row["bytes"]) for row in undisturbed.outbox(name)]
        counted = [
            (round_["round"], update["status"], update["bytes"])
            for round_ in undisturbed.rounds()
            for update in round_["updates"]
            if update["device_id"] == name
        ]

        assert sent == counted


def test_an_exported_model_is_the_committed_one(undisturbed: Fleet, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    arguments = ["models", "export", undisturbed.job()["id"], "--server", undisturbed.url, "--output", str(path)]

    subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        timeout=LIMIT_S,
        check=True,
    )

    assert load_checkpoint(path).weights_digest == undisturbed.digests()[-1]


def test_a_second_run_ends_in_the_same_bits_and_stops_without_leftovers(
    undisturbed: Fleet, make_fleet: FleetFactory
) -> None:
    fleet = make_fleet()
    fleet.start()
    fleet.wait_until_completed()

    digests = fleet.digests()
    statuses = fleet.stop()

    assert digests == undisturbed.digests()
    assert statuses == [0] * (len(DEVICES) + 1)
    assert fleet.leftovers() == []

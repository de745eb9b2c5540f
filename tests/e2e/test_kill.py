"""``kill -9`` of any process at any time: the job ends with the bits that it would have had anyway."""

import os
import signal
from pathlib import Path

from tests.e2e.conftest import DEVICES, ROUNDS
from tests.e2e.processes import Fleet
from tests.patience import wait_for


def assert_as_if_nothing_had_happened(fleet: Fleet, undisturbed: Fleet) -> None:
    (job,) = fleet.wait_until_completed()

    assert job["rounds_committed"] == ROUNDS
    assert fleet.digests() == undisturbed.digests()
    for name in DEVICES:
        accepted = [row["round"] for row in fleet.outbox(name) if row["status"] in ("ACCEPTED", "DUPLICATE")]
        assert accepted == list(range(1, ROUNDS + 1))


def test_coordinator_killed_between_rounds(fleet: Fleet, undisturbed: Fleet) -> None:
    fleet.wait_until_committed(1)
    before = fleet.digests()

    fleet.coordinator.kill()
    fleet.start_coordinator()

    assert fleet.digests()[: len(before)] == before
    assert_as_if_nothing_had_happened(fleet, undisturbed)


def test_coordinator_killed_while_devices_train(fleet: Fleet, undisturbed: Fleet) -> None:
    fleet.wait_until_training("device-1", round_number=2)

    fleet.coordinator.kill()
    fleet.start_coordinator()

    assert_as_if_nothing_had_happened(fleet, undisturbed)


def test_coordinator_killed_with_acknowledged_updates(fleet: Fleet, undisturbed: Fleet) -> None:
    held = fleet.wait_until_training("device-1", round_number=2)
    os.kill(held, signal.SIGSTOP)  # the round stays open until it goes on
    wait_for("two updates of round 2", lambda: fleet.rounds()[1]["accepted"] == 2)

    fleet.coordinator.kill()
    fleet.start_coordinator()
    open_round = fleet.rounds()[1]
    os.kill(held, signal.SIGCONT)

    assert (open_round["state"], open_round["accepted"]) == ("COLLECTING", 2)
    assert_as_if_nothing_had_happened(fleet, undisturbed)


def test_agent_killed_while_it_trains(fleet: Fleet, undisturbed: Fleet) -> None:
    trainer = fleet.wait_until_training("device-2", round_number=2)

    fleet.devices["device-2"].kill()

    wait_for("the trainer to end with its agent", lambda: not Path(f"/proc/{trainer}").exists())
    fleet.start_device("device-2")
    assert_as_if_nothing_had_happened(fleet, undisturbed)


def test_trainer_killed_while_it_trains(fleet: Fleet, undisturbed: Fleet) -> None:
    trainer = fleet.wait_until_training("device-3", round_number=2)

    os.kill(trainer, signal.SIGKILL)

    assert_as_if_nothing_had_happened(fleet, undisturbed)
    assert fleet.devices["device-3"].is_alive()


def test_everything_killed_at_once(fleet: Fleet, undisturbed: Fleet) -> None:
    fleet.wait_until_training("device-1", round_number=2)

    for process in [fleet.coordinator, *fleet.devices.values()]:
        process.kill()
    fleet.start()

    assert_as_if_nothing_had_happened(fleet, undisturbed)

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


def test_coordinator_killed_while_devices_train(held: Fleet, undisturbed: Fleet) -> None:
    held.wait_until_at_work()

    held.coordinator.kill()
    held.start_coordinator()
    held.let_go()

    assert_as_if_nothing_had_happened(held, undisturbed)


def test_coordinator_killed_with_acknowledged_updates(held: Fleet, undisturbed: Fleet) -> None:
    held.wait_until_accepted(2, 2)

    held.coordinator.kill()
    held.start_coordinator()
    open_round = held.rounds()[1]
    held.let_go()

    assert (open_round["state"], open_round["accepted"]) == ("COLLECTING", 2)
    assert_as_if_nothing_had_happened(held, undisturbed)


def test_agent_killed_while_it_trains(held: Fleet, undisturbed: Fleet) -> None:
    name, trainer = held.wait_until_at_work()

    held.devices[name].kill()

    wait_for("the trainer to end with its agent", lambda: not Path(f"/proc/{trainer}").exists())
    held.start_device(name)
    held.let_go()
    assert_as_if_nothing_had_happened(held, undisturbed)


def test_trainer_killed_while_it_trains(held: Fleet, undisturbed: Fleet) -> None:
    name, trainer = held.wait_until_at_work()

    os.kill(trainer, signal.SIGKILL)
    held.let_go()

    assert_as_if_nothing_had_happened(held, undisturbed)
    assert held.devices[name].is_alive()


def test_everything_killed_at_once(held: Fleet, undisturbed: Fleet) -> None:
    held.wait_until_at_work()

    for process in [held.coordinator, *held.devices.values()]:
        process.kill()
    held.start()

    assert_as_if_nothing_had_happened(held, undisturbed)

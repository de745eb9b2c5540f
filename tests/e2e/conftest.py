"""One small job on real data for all end-to-end tests, and what it gives when nobody disturbs it."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import Fleet, split_digits

ROUNDS = 3
DEVICES = ("device-1", "device-2", "device-3")

FleetFactory = Callable[..., Fleet]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The digits, split unevenly over the devices."""
    return split_digits(tmp_path_factory.mktemp("shards"), DEVICES)


@pytest.fixture(scope="session")
def job() -> dict[str, Any]:
    # A round takes about two seconds, so that there mostly is a middle to be killed in. All devices must take part, so
    # the result is a function of the job and the data alone.
    return {
        "name": "e2e",
        "model": {"zoo": "mlp", "params": {"widths": [256, 256]}},
        "classes": [str(digit) for digit in range(10)],
        "input_shape": [8, 8],
        "rounds": ROUNDS,
        "min_devices": len(DEVICES),
        "quorum": len(DEVICES),
        "deadline_s": 600.0,
        "local_steps": 800,
        "evaluation": {"dataset": "digits"},
    }


@pytest.fixture(scope="session")
def make_fleet(
    tmp_path_factory: pytest.TempPathFactory, job: dict[str, Any], shards: dict[str, Path]
) -> Iterator[FleetFactory]:
    """Make fleets, for the job or for others, with a coordinator's options; what is left at the end is killed."""
    fleets: list[Fleet] = []

    def make(*jobs: dict[str, Any], options: Sequence[str] = ()) -> Fleet:
        fleets.append(Fleet(tmp_path_factory.mktemp("fleet"), jobs or (job,), shards, *options))
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.close()


@pytest.fixture
def fleet(make_fleet: FleetFactory) -> Iterator[Fleet]:
    """A fleet of this test's own, running."""
    fleet = make_fleet()
    try:
        fleet.start()
        yield fleet
    finally:
        fleet.close()


@pytest.fixture
def held(make_fleet: FleetFactory) -> Iterator[Fleet]:
    """A fleet of this test's own, in its job's second round, which stays open until it is let go."""
    fleet = make_fleet()
    try:
        fleet.start_held()
        yield fleet
    finally:
        fleet.close()


@pytest.fixture(scope="session")
def undisturbed(make_fleet: FleetFactory) -> Iterator[Fleet]:
    """A fleet that has completed its job and still runs."""
    fleet = make_fleet()
    try:
        fleet.start()
        fleet.wait_until_completed()
        yield fleet
    finally:
        fleet.close()

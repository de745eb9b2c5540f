"""Two jobs on one fleet of real processes: each ends with the bits that it gives alone, whatever is killed."""

from typing import Any

from tests.e2e.conftest import DEVICES, ROUNDS, FleetFactory
from tests.e2e.processes import Fleet


def test_a_coordinator_killed_with_two_running_jobs_ends_both_as_if_they_were_alone(
    job: dict[str, Any], make_fleet: FleetFactory
) -> None:
    # The second one's recipe keeps something on the devices between rounds.
    first = {**job, "name": "first", "local_steps": 200}
    second = {**job, "name": "second", "local_steps": 100, "seed": 7, "recipe": "onebit"}
    expected = [digests_alone(make_fleet(job)) for job in (first, second)]
    fleet = make_fleet(first, second)
    fleet.start_held()
    before = fleet.jobs()
    fleet.coordinator.kill()
    fleet.start_coordinator()
    fleet.let_go()
    jobs = fleet.wait_until_completed()

    assert [(job["state"], job["rounds_committed"]) for job in before] == [("RUNNING", 1)] * 2
    assert [job["rounds_committed"] for job in jobs] == [ROUNDS, ROUNDS]
    assert [fleet.digests(job["id"]) for job in jobs] == expected
    for name in DEVICES:
        rows = [row for row in fleet.outbox(name) if row["status"] in ("ACCEPTED", "DUPLICATE")]
        assert len({(row["job_id"], row["round"]) for row in rows}) == len(rows)  # nothing was counted twice


def digests_alone(fleet: Fleet) -> list[str]:
    fleet.start()
    fleet.wait_until_completed()
    digests = fleet.digests()
    fleet.stop()
    return digests

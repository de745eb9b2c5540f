"""Distributed differential privacy with real processes: every device adds its noise, and writes down that it did."""

from typing import Any

from server.privacy import epsilon_after
from tests.e2e.test_secure_run import DEVICES, TlsFleet, data_folders, job_of, make_fleet
from tests.patience import wait_for

__all__ = ["data_folders", "make_fleet"]  # fixtures

NOISE = 1.5


def test_devices_add_their_noise_and_the_job_ends_at_its_budget(make_fleet: Any) -> None:
    budget = epsilon_after(NOISE, 1e-5, 2) * 1.01
    privacy = {"mechanism": "distributed", "epsilon": budget, "noise_multiplier": NOISE}
    fleet: TlsFleet = make_fleet(
        job_of(
            recipe="onebit",
            rounds=5,
            local_steps=5,
            quorum=None,
            secure_aggregation={"min_members": 3, "phase_s": 600},
            privacy=privacy,
            evaluation=None,
        )
    )

    wait_for("the job to end", lambda: fleet.job()["state"] in ("COMPLETED", "FAILED"), timeout_s=240)

    job = fleet.job()
    assert (job["rounds_committed"], job["state"]) == (2, "COMPLETED")
    assert job["reason"].startswith("the privacy budget is spent")
    assert budget / 1.02 < job["privacy"]["epsilon"] <= budget
    masked = [row for name in DEVICES for row in fleet.sent(name, "masked")]
    assert {row.round_number for row in masked} == {1, 2}
    assert len(masked) >= 2 * 3  # a busy machine may lose one
    for row in masked:
        assert row.privacy is not None
        assert (row.privacy.mechanism, row.privacy.noise_multiplier) == ("distributed", NOISE)

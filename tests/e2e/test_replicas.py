"""Two coordinators over one PostgreSQL and one object store die while devices go on: nothing is lost or doubled."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.postgres_server import why_no_postgres
from tests.s3_server import why_no_s3


def test_replicas_and_the_database_are_killed_while_devices_go_on(tmp_path: Path) -> None:
    if problem := why_no_postgres() or why_no_s3():
        pytest.skip(problem)
    from benchmarks.replicas.faults import Campaign, play

    campaign = Campaign(
        replicas=2, devices=6, rounds=3, kills=3, postgres=("kill",), store_kills=0, every_s=2.0, training_s=(0.5, 5.0),
        limit_s=600.0,
    )  # fmt: skip
    run = play(tmp_path, campaign, print, is_calm=False)

    assert vars(run.losses) == {"rounds": [], "updates": [], "doubled": [], "digests": []}
    assert run.problems == []
    # At the last commit some may not have been told yet: their answer was lost, and they are sending again.
    assert run.acknowledged >= campaign.devices
    assert run.done == {"replicas killed": 3, "PostgreSQL restarted (kill)": 1}

"""What a job says of secure aggregation, and with what it does not go together."""

from __future__ import annotations

from typing import Any

import pytest

from server.coordinator.rules import check_limits, most_devices
from server.errors import InvalidJobError
from server.jobs import JobConfig
from server.limits import Limits
from server.secure_jobs import SecureChoice
from tests.server.conftest import make_job


def test_what_is_left_out_is_filled_in() -> None:
    job = make_job(secure_aggregation={})

    assert job.secure_aggregation == SecureChoice(min_members=3, threshold=2 / 3, phase_s=60.0, degree=0, clip=15)
    assert job.exchange_s == 180.0
    assert JobConfig.from_json(job.to_json()) == job
    assert (make_job().secure_aggregation, make_job().exchange_s) == (None, 0.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strategy": "median"}, "strategy 'median' compares single updates"),
        ({"strategy": "krum"}, "compares single updates"),
        ({"strategy": "fedbuff", "quorum": 3}, "the masks of secure_aggregation cancel within one round"),
        ({"up_codec": "float32"}, "up_codec must be one of 'sign', 'int8', got 'float32'"),
        ({"up_codec": "flips", "statistics_batches": 2}, "up_codec must be one of"),
        ({"strategy": "signvote"}, "use up_codec 'sign'"),
        ({"cohort_size": 2}, r"cohort_size \(2\) is below the 3 members"),
        ({"quorum": 2}, r"quorum \(2\) is below the 3 members"),
        ({"secure_aggregation": {"min_members": 2}}, "min_members"),
        ({"secure_aggregation": {"threshold": 0.5}}, "threshold"),
        ({"secure_aggregation": {"degree": 1}}, "at least 2 neighbours"),
        ({"secure_aggregation": {"phase_s": 0.0}}, "phase_s"),
        ({"secure_aggregation": {"masks": True}}, "masks"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidJobError, match=words):
        make_job(**{"secure_aggregation": {}, **changes})


def test_a_member_shares_masks_with_so_many_others() -> None:
    limits = Limits(max_neighbours=10)

    check_limits(make_job(cohort_size=11, secure_aggregation={}), limits)
    check_limits(make_job(cohort_size=500, secure_aggregation={"degree": 10}), limits)
    check_limits(make_job(cohort_size=500), limits)
    with pytest.raises(InvalidJobError, match=r"with 11 others, .* 10 at most \(max_neighbours\); give .* degree"):
        check_limits(make_job(cohort_size=12, secure_aggregation={}), limits)
    with pytest.raises(InvalidJobError, match="with 11 others"):
        check_limits(make_job(secure_aggregation={"degree": 11}), limits)


def test_a_job_that_asks_all_devices_asks_as_many_as_may_be_neighbours() -> None:
    limits = Limits(max_neighbours=10, max_cohort=1000)

    assert most_devices(None, limits) == 1000
    assert most_devices(SecureChoice(), limits) == 11
    assert most_devices(SecureChoice(degree=4), limits) == 1000

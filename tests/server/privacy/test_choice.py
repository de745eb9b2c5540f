"""The key ``privacy`` of a job: what is filled in, and what is refused with which words."""

from __future__ import annotations

from typing import Any

import pytest

from server.errors import InvalidJobError
from server.jobs import JobConfig, parse_job
from server.privacy import epsilon_after

DISTRIBUTED: dict[str, Any] = {
    "name": "digits",
    "model": {"zoo": "mlp", "params": {"widths": [16]}},
    "classes": ["0", "1", "2"],
    "input_shape": [4, 4],
    "rounds": 10,
    "local_steps": 5,
    "up_codec": "sign",
    "statistics_batches": 2,
    "secure_aggregation": {"min_members": 8},
    "privacy": {"mechanism": "distributed", "epsilon": 8.0},
}


def test_the_noise_is_worked_out_once_and_written_down() -> None:
    job = parse_job(DISTRIBUTED)

    assert job.privacy is not None
    assert (job.privacy.delta, job.privacy.level, job.privacy.clip) == (1e-5, "device", None)
    noise = job.privacy.noise_multiplier
    assert noise is not None
    # ten rounds, and one of statistics after them
    assert epsilon_after(noise * (1 - 1e-9), 1e-5, 11) <= 8 < epsilon_after(noise * 0.999, 1e-5, 11)
    assert job.privacy.why_spent(10) == ""
    assert JobConfig.from_json(job.to_json()) == job


def test_a_noise_that_is_named_stands_and_the_budget_ends_the_job() -> None:
    job = parse_job({**DISTRIBUTED, "privacy": {"mechanism": "distributed", "epsilon": 8.0, "noise_multiplier": 1.0}})

    assert job.privacy is not None
    assert job.privacy.noise_multiplier == 1.0
    counts = [number for number in range(11) if not job.privacy.why_spent(number)]
    assert counts == list(range(len(counts)))
    assert 1 <= len(counts) < 11
    assert f"after {len(counts)} sums" in job.privacy.why_spent(len(counts))
    assert job.privacy.spent(len(counts)) <= 8


def test_a_round_tells_the_devices_that_share_the_noise() -> None:
    form = parse_job(DISTRIBUTED).value_form(1)

    assert form.privacy is not None
    assert (form.privacy.noisy_members, form.weights, form.kind) == (8, "signs", "update")
    assert parse_job(DISTRIBUTED).value_form(11).kind == "statistics"
    assert form.accounted_multiplier >= form.privacy.noise_multiplier * (1 - 1e-9)


def test_bare_signs_carry_the_schedule_and_steps_do_not() -> None:
    job = parse_job(DISTRIBUTED)

    assert [job.local_step_scale(number) for number in (1, 10)] == [1.0, 1.0]
    worth = [int(job.sign_scales(number, b"")["dense1.weight"][0]) for number in (1, 10)]
    assert worth == [4 * 256, round(0.1 * 4 * 256)]
    clipped = parse_job(
        {**DISTRIBUTED, "up_codec": "int8", "privacy": {"mechanism": "distributed", "epsilon": 8.0, "clip": 100.0}}
    )
    assert clipped.local_step_scale(10) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"secure_aggregation": None}, "'distributed' needs secure_aggregation"),
        ({"up_codec": "int8"}, "needs clip"),
        ({"up_codec": "flips"}, "up_codec must be one of 'sign', 'int8'"),
        ({"strategy": "median", "secure_aggregation": None}, "'distributed' needs secure_aggregation"),
        ({"local_validation": 0.2}, "local_validation must be 0"),
        (
            {"privacy": {"mechanism": "distributed", "epsilon": 8.0, "clip": 1.0}},
            "clip_quantile are for up_codec 'int8'",
        ),
        (
            {"privacy": {"mechanism": "distributed", "epsilon": 8.0, "level": "example"}},
            "level 'example' is not offered",
        ),
        ({"privacy": {"mechanism": "local", "epsilon": 8.0}}, "privacy.mechanism"),
        ({"privacy": {"mechanism": "distributed", "epsilon": 0.0}}, "privacy.epsilon"),
        ({"privacy": {"mechanism": "distributed", "epsilon": 8.0, "delta": 1.0}}, "privacy.delta"),
        ({"privacy": {"mechanism": "central", "epsilon": 8.0}, "strategy": "krum", "secure_aggregation": None}, "krum"),
        (
            {"privacy": {"mechanism": "central", "epsilon": 8.0}, "strategy": "fedbuff", "quorum": 8},
            "strategy 'fedbuff'",
        ),
        ({"model": {"zoo": "resnete18"}, "input_shape": [32, 32, 3]}, "real-valued layers"),
    ],
)
def test_what_cannot_be_private_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidJobError, match=words):
        parse_job({**DISTRIBUTED, **changes})


def test_central_noise_needs_no_masks() -> None:
    job = parse_job({**DISTRIBUTED, "secure_aggregation": None, "privacy": {"mechanism": "central", "epsilon": 2.0}})

    privacy = job.value_form(1).privacy
    assert privacy is not None
    assert (privacy.mechanism, privacy.noisy_members) == ("central", 1)

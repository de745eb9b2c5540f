"""Who takes part in a round, and why a device does not."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from server.coordinator.cohort import select_cohort, why_ineligible, why_not_allowed

IDS = [f"device-{number}" for number in range(20)]


def test_size_zero_takes_everyone() -> None:
    assert select_cohort(reversed(IDS), 0, seed=1, round_number=1) == tuple(sorted(IDS))


def test_a_cohort_is_a_function_of_seed_round_and_ids_alone() -> None:
    chosen = select_cohort(IDS, 5, seed=7, round_number=3)

    assert select_cohort(reversed(IDS), 5, seed=7, round_number=3) == chosen
    assert len(set(chosen)) == 5
    assert select_cohort(IDS, 5, seed=8, round_number=3) != chosen
    assert select_cohort(IDS, 5, seed=7, round_number=4) != chosen


def test_the_absence_of_a_device_that_was_not_chosen_changes_nothing() -> None:
    chosen = select_cohort(IDS, 5, seed=7, round_number=3)
    spare = next(device_id for device_id in IDS if device_id not in chosen)

    assert select_cohort([device_id for device_id in IDS if device_id != spare], 5, seed=7, round_number=3) == chosen


def test_every_device_has_its_turn() -> None:
    turns = Counter(device_id for n in range(1, 401) for device_id in select_cohort(IDS, 5, seed=0, round_number=n))

    # 400 rounds of 5 among 20: 100 expected, standard deviation sqrt(400 * 1/4 * 3/4) = 8.7; 5 of them either way
    assert set(turns) == set(IDS)
    assert all(abs(count - 100) < 44 for count in turns.values())


def reason(**changes: Any) -> str | None:
    fields: dict[str, Any] = {
        "job_classes": ["cat", "dog", "hen"],
        "job_input_shape": [8, 8],
        "job_has_input_range": False,
        "device_classes": ["hen", "cat"],
        "device_input_shape": (8, 8),
        "device_num_examples": 5,
    }
    return why_ineligible(**{**fields, **changes})


def test_a_device_may_know_fewer_classes_in_any_order() -> None:
    assert reason() is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device_classes": ["cat", "yak"]}, "['yak']"),
        ({"device_classes": []}, "no classes"),
        ({"device_input_shape": (28, 28)}, "[28, 28], the job needs [8, 8]"),
        ({"device_num_examples": 0}, "no training samples"),
        ({"any_image_shape": True, "job_input_shape": [8, 8, 2]}, "pictures, the job needs shape [8, 8, 2]"),
        ({"needs_input_range": True}, "real numbers, and the job says by no input_range"),
        ({"job_has_input_range": True}, "8-bit numbers, the job's input_range is for real ones"),
        (
            {"needs_input_range": True, "job_has_input_range": True, "device_input_shape": (65,)},
            "its samples are 65 numbers, the job needs 64",
        ),
    ],
)
def test_a_device_that_does_not_fit_is_told_why(changes: dict[str, Any], words: str) -> None:
    assert words in (reason(**changes) or "")


@pytest.mark.parametrize("shape", [[8, 8], [224, 200, 1], [32, 32, 3]])
def test_pictures_fit_every_shape_of_pictures(shape: list[int]) -> None:
    assert reason(job_input_shape=shape, device_input_shape=(32, 32, 3), any_image_shape=True) is None


def test_real_numbers_fit_a_job_of_as_many_with_a_range() -> None:
    changes = {"job_has_input_range": True, "needs_input_range": True}

    assert reason(job_input_shape=[128, 6], device_input_shape=(768,), **changes) is None


def test_a_device_needs_every_label_that_the_job_asks_for() -> None:
    asked = {"site": "lab", "board": "pi4"}

    assert why_not_allowed(asked, {**asked, "floor": "2"}) is None
    assert why_not_allowed({}, {}) is None
    assert why_not_allowed(asked, {"site": "home", "board": "pi4"}) == "the job is for devices labelled site=lab"
    assert why_not_allowed(asked, {}) == "the job is for devices labelled board=pi4, site=lab"

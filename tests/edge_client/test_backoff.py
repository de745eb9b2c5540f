from itertools import islice

from edge_client.backoff import backoff


def test_waits_double_up_to_the_cap() -> None:
    waits = list(islice(backoff(first_s=1, cap_s=5, uniform=lambda: 0.0), 5))

    assert waits == [0.5, 1.0, 2.0, 2.5, 2.5]  # half of 1, 2, 4, 5, 5


def test_half_of_a_wait_is_random() -> None:
    numbers = iter([0.0, 0.5, 0.9])

    waits = list(islice(backoff(first_s=2, cap_s=2, uniform=lambda: next(numbers)), 3))

    assert waits == [1.0, 1.5, 1.9]


def test_no_wait_exceeds_half_a_minute_by_default() -> None:
    assert max(islice(backoff(), 50)) < 30

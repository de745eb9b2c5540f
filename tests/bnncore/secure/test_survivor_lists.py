"""A coordinator that tells each device another list of survivors: the fewest members whose sum it can open."""

from __future__ import annotations

import math
from collections.abc import Collection

import pytest

from bnncore.secure import ExchangeRules, RingVector
from bnncore.secure.messages import Reveal
from tests.bnncore.secure.exchange_cases import SMALL, Exchange, names


def opens(number: int, rules: ExchangeRules, kept: Collection[str]) -> bool:
    """Say whether lies that devices believe open the sum of ``kept`` alone, of so many members.

    Every list has ``kept``, the device itself, and the others in turn until it is long enough: so each of the others is
    on as few lists as can be.
    """
    exchange = Exchange(SMALL, {name: RingVector.zeros(SMALL) for name in names(number)}, rules)
    exchange.share()
    exchange.mask()
    needed = rules.shares_needed(number)
    others = [name for name in names(number) if name not in kept]
    answers = dict.fromkeys(names(number), 0)
    turn = 0
    for name in names(number):
        told = {*kept, name}
        while len(told) < max(needed, rules.min_members):
            told.add(others[turn % len(others)])
            turn += 1
        survived = {member: member in told for member in names(number)}
        message = exchange.step(name, lambda device, lists=survived: device.reveal(lists))  # type: ignore[misc]
        for member, (came, _) in Reveal.from_bytes(message).shares.items():
            answers[member] += came == (member in kept)
    return all(count >= needed for count in answers.values())


@pytest.mark.parametrize(("number", "min_members"), [(5, 3), (10, 3), (10, 9), (12, 10)])
def test_lists_that_differ_open_no_sum_of_fewer_than_is_said(number: int, min_members: int) -> None:
    rules = ExchangeRules(min_members=min_members)
    needed = rules.shares_needed(number)
    least = math.ceil(number * (max(needed, min_members) + needed - number) / needed)

    opened = [size for size in range(1, number) if opens(number, rules, names(number)[:size])]

    assert min(opened, default=number) == least
    assert 2 * least >= number

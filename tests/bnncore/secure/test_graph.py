"""Who is whose neighbour."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnncore.secure.graph import is_complete, least_degree, neighbours, place_of

seeds = st.binary(min_size=32, max_size=32)


@given(st.integers(1, 60), st.integers(0, 60), seeds)
def test_a_graph_is_symmetric_regular_and_connected(num_members: int, degree: int, seed: bytes) -> None:
    graph = neighbours(num_members, degree, seed)

    wanted = num_members - 1 if is_complete(num_members, degree) else degree + degree % 2
    assert len(graph) == num_members
    for me, around in enumerate(graph):
        assert len(set(around)) == wanted
        assert list(around) == sorted(around)
        assert me not in around
        assert all(me in graph[other] for other in around)
    reached, new = {0}, {0}
    while new:
        new = {other for me in new for other in graph[me]} - reached
        reached |= new
    assert len(reached) == num_members


@given(st.integers(6, 60), st.integers(1, 20), seeds)
def test_a_member_finds_its_place_among_its_neighbours(num_members: int, degree: int, seed: bytes) -> None:
    if is_complete(num_members, degree):
        return
    graph = neighbours(num_members, degree, seed)

    for me, around in enumerate(graph):
        assert place_of(around, num_members, degree, seed) == me
    assert place_of([*graph[0][1:], num_members], num_members, degree, seed) is None
    strangers = set(range(num_members)) - set(graph[0])
    assert place_of([*graph[0][1:], max(strangers)], num_members, degree, seed) != 0
    assert place_of(graph[0][1:], num_members, degree, seed) is None


def test_the_seed_decides_the_order() -> None:
    assert neighbours(40, 4, b"a" * 32) == neighbours(40, 4, b"a" * 32) != neighbours(40, 4, b"b" * 32)


def test_the_least_degree_is_safe_enough_and_the_next_smaller_is_not() -> None:
    degree = least_degree(1000, corrupt=0.05, lost=0.1, threshold=2 / 3)

    def failing(k: int) -> float:
        # The third property by the definition: more than h - t of the h = k + 1 holders are among the 100 lost.
        needed = math.floor((k + 1) * 2 / 3) + 1
        return sum(
            1000 * math.comb(100, lost) * math.comb(900, k + 1 - lost) / math.comb(1000, k + 1)
            for lost in range(k + 2 - needed, k + 2)
        )

    assert failing(degree) <= 2**-20
    assert degree % 2 == 0
    assert 20 < degree < 200
    assert least_degree(1000, corrupt=0.05, lost=0.1, security_bits=60) > degree
    assert least_degree(10_000, corrupt=0.05, lost=0.1) < 4 * degree  # grows with the logarithm


@pytest.mark.parametrize(("num_members", "lost"), [(10, 0.3), (100, 0.4), (50, 0.99)])
def test_where_no_smaller_degree_is_enough_all_are_neighbours(num_members: int, lost: float) -> None:
    assert least_degree(num_members, lost=lost) == 0

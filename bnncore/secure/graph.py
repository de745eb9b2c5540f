"""Who shares masks with whom, when not all members do with all.

The members stand on a ring in an order that a seed shuffles, and each is a neighbour of the ``degree / 2`` next ones on
either side: a Harary graph with its nodes permuted. Work and bytes of a device then grow with the degree, not with the
cohort. ``least_degree`` says which degree is enough, when the order is random: a coordinator that chose it could
surround a device with its own.

Source: Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", CCS 2020, sections 3.1 and 3.2.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

__all__ = ["even_degree", "is_complete", "least_degree", "neighbours", "place_of"]


def even_degree(degree: int) -> int:
    """Give the degree that a graph has: the next even number, as each member has as many neighbours on either side."""
    return degree + degree % 2


def is_complete(num_members: int, degree: int) -> bool:
    """Say whether all members are neighbours of all: by choice, where the degree is 0, or as there are hardly more.

    With one more than the degree two members would have the same neighbours, and could not tell their places apart.
    """
    return degree == 0 or even_degree(degree) >= num_members - 2


def neighbours(num_members: int, degree: int, seed: bytes) -> tuple[tuple[int, ...], ...]:
    """Give each position's neighbours, in order. Positions count from 0; the relation is symmetric.

    Args:
      num_members: at least 1.
      degree: neighbours of a member, rounded up to an even number; 0 or too many: all.
      seed: decides the order on the ring; unused in a complete graph.
    """
    if is_complete(num_members, degree):
        everyone = range(num_members)
        return tuple((*everyone[:me], *everyone[me + 1 :]) for me in everyone)
    order, half = _ring(num_members, seed), even_degree(degree) // 2
    found: list[tuple[int, ...]] = [()] * num_members
    for rank, member in enumerate(order):
        around = (order[(rank + step) % num_members] for step in range(-half, half + 1) if step)
        found[member] = tuple(sorted(around))
    return tuple(found)


def place_of(positions: Iterable[int], num_members: int, degree: int, seed: bytes) -> int | None:
    """Give the position whose neighbours these are; None when there is no such one. The graph is not complete."""
    wanted = set(positions)
    if len(wanted) != even_degree(degree) or not all(0 <= position < num_members for position in wanted):
        return None
    order, half = _ring(num_members, seed), even_degree(degree) // 2
    first = order.index(next(iter(wanted)))
    for rank in range(first - half, first + half + 1):
        around = {order[(rank + step) % num_members] for step in range(-half, half + 1) if step}
        if around == wanted:
            return order[rank % num_members]
    return None


def _ring(num_members: int, seed: bytes) -> list[int]:
    # Sorted by a hash: the same on every machine and in every version of Python, unlike random.shuffle.
    return sorted(range(num_members), key=lambda member: hashlib.sha256(seed + member.to_bytes(4, "little")).digest())


def least_degree(
    num_members: int,
    *,
    corrupt: float = 0.05,
    lost: float = 0.3,
    threshold: float = 2 / 3,
    security_bits: int = 40,
    failure_bits: int = 20,
) -> int:
    """Give the smallest degree that is both safe and likely to succeed; 0 when nothing less than all neighbours is.

    Among ``num_members``, at most ``corrupt`` (a part) work for the coordinator and at most ``lost`` drop out, chosen
    without regard to the ring's order. Three things may go wrong, each bounded by its union over the members:

    1. somebody's corrupt holders are as many as ``2 t - h``, so that with them both kinds of share of a device could
       be had (t = shares that open a secret, h = its holders): below 2^-security_bits in all;
    2. ``degree / 2`` members in a row are corrupt or lost, without which the others cannot be cut in two: the same;
    3. somebody's lost holders are more than ``h - t``: below 2^-failure_bits in all.

    Source: Bell et al., section 3.2: their properties of a good graph, with the exact hypergeometric tails in place of
    Chernoff's bounds.
    """
    num_corrupt, num_lost = math.ceil(corrupt * num_members), math.ceil(lost * num_members)
    if num_corrupt + num_lost >= num_members:
        return 0
    for degree in range(2, num_members - 2, 2):
        holders = degree + 1
        needed = min(math.floor(holders * threshold) + 1, holders)
        unsafe = num_members * _tail(num_members, num_corrupt, holders, 2 * needed - holders)
        unsafe += num_members * _all_of(num_members, num_corrupt + num_lost, degree // 2)
        failing = num_members * _tail(num_members, num_lost, holders, holders - needed + 1)
        if unsafe <= 2.0**-security_bits and failing <= 2.0**-failure_bits:
            return degree
    return 0


def _tail(population: int, marked: int, drawn: int, least: int) -> float:
    """P[at least ``least`` of ``drawn`` are among the ``marked`` of a population], drawn without replacement."""
    total = math.comb(population, drawn)
    some = sum(
        math.comb(marked, k) * math.comb(population - marked, drawn - k) for k in range(least, min(marked, drawn) + 1)
    )
    return some / total


def _all_of(population: int, marked: int, drawn: int) -> float:
    return math.comb(marked, drawn) / math.comb(population, drawn)

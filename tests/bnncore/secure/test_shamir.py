"""Secret sharing: enough shares give the secret, fewer say nothing."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnncore.errors import PayloadError
from bnncore.secure.shamir import PRIME, SHARE_BYTES, join, split, value_at


@given(st.binary(min_size=32, max_size=32), st.integers(1, 12), st.data())
def test_any_enough_shares_give_the_secret(secret: bytes, num_shares: int, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(1, 1 << 40), min_size=num_shares, max_size=num_shares, unique=True))
    threshold = data.draw(st.integers(1, num_shares))

    shares = dict(zip(positions, split(secret, threshold, positions), strict=True))
    some = data.draw(st.lists(st.sampled_from(positions), min_size=threshold, unique=True))
    chosen = {position: shares[position] for position in some}

    assert join(chosen) == secret
    assert all(value_at(position, chosen) == shares[position] for position in positions)


def test_one_share_too_few_fits_every_secret() -> None:
    shares = dict(zip((1, 2, 3), split(b"a" * 32, 3, (1, 2, 3)), strict=True))

    # For each other secret there is a third share that makes the other two open it.
    for secret in (bytes(32), b"b" * 32, b"\xff" * 32):
        fitting = {0: secret + b"\0", 1: shares[1], 2: shares[2]}
        third = _interpolate(fitting, 3)
        assert join({1: shares[1], 2: shares[2], 3: third}) == secret


def _interpolate(points: dict[int, bytes], x: int) -> bytes:
    total = 0
    for i, share in points.items():
        weight = int.from_bytes(share, "little")
        for j in points:
            if j != i:
                weight = weight * (x - j) * pow(i - j, -1, PRIME) % PRIME
        total += weight
    return (total % PRIME).to_bytes(SHARE_BYTES, "little")


def test_the_modulus_is_prime() -> None:
    # Fermat's test to 24 bases; none of the odd numbers between it and 2^256 passes it for base 3.
    assert all(pow(base, PRIME - 1, PRIME) == 1 for base in range(2, 26))
    assert not any(pow(3, n - 1, n) == 1 for n in range((1 << 256) + 1, PRIME, 2))


def test_largest_coefficients_and_secrets_fit() -> None:
    secret = b"\xff" * 32

    shares = split(secret, 3, (1, 2, 3), draw=lambda size: b"\xff" * size)

    assert join(dict(zip((1, 2, 3), shares, strict=True))) == secret
    assert {len(share) for share in shares} == {SHARE_BYTES}


def test_what_is_no_share_is_refused() -> None:
    shares = dict(zip((1, 2, 3), split(b"a" * 32, 2, (1, 2, 3)), strict=True))

    for wrong in (b"", b"\xff" * 33, PRIME.to_bytes(33, "little"), bytes(32), bytes(34)):
        with pytest.raises(PayloadError, match="a share is 33 bytes"):
            join({1: shares[1], 2: wrong})
    with pytest.raises(PayloadError, match="belong together"):
        join({1: (PRIME - 1).to_bytes(33, "little")})


@pytest.mark.parametrize("positions", [(), (0, 1), (1, 1), (-1, 2)])
def test_positions_are_different_and_count_from_one(positions: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="different positions from 1"):
        split(bytes(32), 1, positions)


@pytest.mark.parametrize(("size", "threshold"), [(31, 1), (33, 1), (32, 0), (32, 3)])
def test_secret_and_threshold_have_their_bounds(size: int, threshold: int) -> None:
    with pytest.raises(ValueError, match="threshold from 1 to 2"):
        split(bytes(size), threshold, (1, 2))


def test_two_splits_have_nothing_in_common() -> None:
    first, second = split(bytes(32), 2, (1, 2)), split(bytes(32), 2, (1, 2))

    assert not any(a == b for a, b in itertools.product(first, second))

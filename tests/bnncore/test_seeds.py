"""Derived seeds are the same everywhere and differ between purposes."""

from __future__ import annotations

import hashlib

from bnncore.seeds import derive_seed


def test_seed_is_the_head_of_the_sha256_of_the_joined_parts() -> None:
    expected = int(hashlib.sha256(b"7/3/kitchen").hexdigest()[:16], 16)

    assert derive_seed(7, 3, "kitchen") == expected


def test_any_other_part_gives_another_seed() -> None:
    seeds = {derive_seed(seed, round_number, name) for seed in range(3) for round_number in range(3) for name in "ab"}

    assert len(seeds) == 18
    assert all(0 <= seed < 2**64 for seed in seeds)

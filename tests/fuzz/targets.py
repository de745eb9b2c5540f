"""All that is fuzzed, by name: everything that reads bytes which came from elsewhere."""

from __future__ import annotations

from functools import cache

from tests.fuzz.coordinator import coordinator_targets
from tests.fuzz.core import core_targets
from tests.fuzz.device import device_targets
from tests.fuzz.exchange import exchange_targets
from tests.fuzz.target import Target

__all__ = ["all_targets", "seeds_of"]


@cache
def all_targets() -> dict[str, Target]:
    """Give the targets: the core's, the coordinator's, the device's, those of secure aggregation."""
    return core_targets() | coordinator_targets() | device_targets() | exchange_targets()


@cache
def seeds_of(name: str) -> list[bytes]:
    """Give a target's valid inputs, made once."""
    return all_targets()[name].make_seeds()

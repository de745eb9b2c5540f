"""Exchanges without masks: the same vectors are added up in the same ring, which gives the same sum.

For simulations of many devices, in one process that holds all their data anyway. Masks would cost keys, shares and key
streams for every pair of devices, and cancel.
"""

from __future__ import annotations

from collections.abc import Mapping

from bnncore.errors import PayloadError
from bnncore.secure.messages import masked_data
from bnncore.secure.ring import RingLayout, RingVector
from bnncore.secure.terms import Context, ExchangeRules, exchange_digest

WITHOUT_MASKS = b"no keys: a sum without masks"
"""What a device sends for every step but MASKED, which is its vector in the clear."""


class PlainArithmetic:
    """That of exchanges without masks; see ``server.coordinator.combining.Arithmetic``."""

    def check_keys(
        self, payload: bytes, context: Context, rules: ExchangeRules, device_id: str, key_digest: str | None
    ) -> None:
        """Check that a device knows that it is none of a real fleet."""
        _check(payload)

    def begin(
        self, context: Context, rules: ExchangeRules, layout: RingLayout, keys: Mapping[str, bytes], graph_seed: bytes
    ) -> PlainSum:
        """Begin a sum."""
        return PlainSum(exchange_digest(context, rules), layout)


class PlainSum:
    """One sum; see ``server.coordinator.combining.Combining``."""

    def __init__(self, digest: bytes, layout: RingLayout) -> None:
        self._digest = digest
        self._sum = RingVector.zeros(layout)
        self._revealed = 0
        self.positions: Mapping[str, int] = {}

    def keys_for(self, device_id: str) -> Mapping[str, bytes]:
        """There are no neighbours."""
        return {}

    def take_shares(self, device_id: str, payload: bytes) -> None:
        """Take note of a device."""
        _check(payload)

    def start_masking(self) -> None:
        """There is nothing to check."""

    def sealed_for(self, device_id: str) -> Mapping[str, bytes]:
        """There are no shares."""
        return {}

    def take_masked(self, device_id: str, data: bytes) -> None:
        """Add a vector."""
        self._sum.add(masked_data(self._digest, data))

    def start_reveal(self) -> None:
        """There is nothing to check."""

    def survived_for(self, device_id: str) -> Mapping[str, bool]:
        """There is nothing to reveal."""
        return {device_id: True}

    def take_reveal(self, device_id: str, payload: bytes) -> None:
        """Take note of a device."""
        _check(payload)
        self._revealed += 1

    @property
    def is_complete(self) -> bool:
        """Whether a device has said that it is done: there are no masks to take off."""
        return self._revealed > 0

    def finish(self) -> RingVector:
        """Give the sum."""
        return self._sum


def _check(payload: bytes) -> None:
    if payload != WITHOUT_MASKS:
        raise PayloadError("a simulation that adds up without masks takes devices of its own alone")

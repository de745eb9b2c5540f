"""What an exchange is computed with: the arithmetic of ``bnncore.secure.combiner``, or a simulation's own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Protocol

from bnncore.errors import PayloadError
from bnncore.secure.acquaintance import check_keys
from bnncore.secure.combiner import Combiner
from bnncore.secure.ring import RingLayout, RingVector
from bnncore.secure.terms import Context, ExchangeRules, Trust


class Combining(Protocol):
    """The coordinator's side of one exchange; see ``Combiner``. Blocking; one thread at a time."""

    @property
    def positions(self) -> Mapping[str, int]:
        """Each member's place among the sorted names."""

    def keys_for(self, device_id: str) -> Mapping[str, bytes]:
        """Return the keys of a member's neighbours."""

    def take_shares(self, device_id: str, payload: bytes) -> None:
        """Take a member's sealed shares; raises PayloadError."""

    def start_masking(self) -> None:
        """End the time of SHARES; raises ExchangeFailedError."""

    def sealed_for(self, device_id: str) -> Mapping[str, bytes]:
        """Return the shares that those who sent shares sealed for a member."""

    def take_masked(self, device_id: str, data: bytes) -> None:
        """Add a member's masked update to the sum; raises PayloadError."""

    def start_reveal(self) -> None:
        """End the time of MASKED; raises ExchangeFailedError."""

    def survived_for(self, device_id: str) -> Mapping[str, bool]:
        """Say of those whose shares a member holds whether their masked updates came."""

    def take_reveal(self, device_id: str, payload: bytes) -> None:
        """Take the shares that a member reveals; raises PayloadError."""

    @property
    def is_complete(self) -> bool:
        """Whether the masks can be taken off."""

    def finish(self) -> RingVector:
        """Take the masks off; raises ExchangeFailedError, after which more shares may help."""


class Arithmetic(Protocol):
    """How exchanges are computed. Blocking."""

    def check_keys(
        self, payload: bytes, context: Context, rules: ExchangeRules, device_id: str, key_digest: str | None
    ) -> None:
        """Check what a device sent as its keys.

        Args:
          payload: what it sent.
          context: of the exchange.
          rules: the job's.
          device_id: of the device.
          key_digest: of the key that its link's certificate is of; None: nobody was asked who it is.

        Raises:
          PayloadError: they are malformed, of another exchange, or not signed by whoever sends them.
        """

    def begin(
        self, context: Context, rules: ExchangeRules, layout: RingLayout, keys: Mapping[str, bytes], graph_seed: bytes
    ) -> Combining:
        """Begin an exchange among those whose keys were checked; raises ExchangeFailedError."""


class MaskedArithmetic:
    """That of real exchanges."""

    def __init__(self) -> None:
        self.ca_pem: bytes | None = None
        """The authority that signs devices' certificates; None where devices have none."""

    def check_keys(
        self, payload: bytes, context: Context, rules: ExchangeRules, device_id: str, key_digest: str | None
    ) -> None:
        """See ``Arithmetic``."""
        trust = None if self.ca_pem is None else Trust(self.ca_pem)
        _, identity = check_keys(context, rules, device_id, payload, trust)
        if trust is not None and key_digest is not None and hashlib.sha256(identity).hexdigest() != key_digest:
            raise PayloadError("the keys must be signed with the key of the certificate that the link has")

    def begin(
        self, context: Context, rules: ExchangeRules, layout: RingLayout, keys: Mapping[str, bytes], graph_seed: bytes
    ) -> Combining:
        """See ``Arithmetic``."""
        return Combiner(context, rules, layout, keys, None, graph_seed)


def graph_seed_of(keys: Mapping[str, bytes]) -> bytes:
    """Draw the order of the members in the graph of masks: every member's keys enter, and nothing has to be kept."""
    digest = hashlib.sha256(b"bitfleet exchange graph")
    for device_id in sorted(keys):
        digest.update(hashlib.sha256(device_id.encode()).digest() + hashlib.sha256(keys[device_id]).digest())
    return digest.digest()

"""What a device knows of the exchange it is in, and how that is kept between two steps."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Self

from bnncore.errors import PayloadError
from bnncore.secure.acquaintance import Acquaintance
from bnncore.secure.crypto import check_public_key
from bnncore.secure.messages import Keys
from bnncore.secure.shamir import SHARE_BYTES

__all__ = ["ParticipantState", "Secrets"]

_VERSION = 1
_SECRET_BYTES = 32


@dataclass(frozen=True)
class Secrets:
    """What a device keeps to itself, 32 random bytes each."""

    channel: bytes = field(repr=False)
    """Private key that others' shares are sealed for."""
    mask: bytes = field(repr=False)
    """Private key that pair masks are agreed with; shared."""
    seed: bytes = field(repr=False)
    """Of the device's own mask; shared."""
    dice: bytes = field(repr=False)
    """Of all that is drawn later, so that a step done again after a power cut is the same step."""

    def __post_init__(self) -> None:
        if any(len(secret) != _SECRET_BYTES for secret in (self.channel, self.mask, self.seed, self.dice)):
            raise ValueError(f"a secret has {_SECRET_BYTES} bytes")


@dataclass
class ParticipantState:
    """Where a device is in an exchange. It is written as JSON, bytes in hex, the secrets included."""

    keys: bytes
    """The message KEYS, which also says which exchange it is, by which rules, and who this device is."""
    secrets: Secrets
    complete: bool = True
    """Whether all members are neighbours."""
    peers: dict[str, Acquaintance] = field(default_factory=dict)
    """The neighbours."""
    masking: tuple[str, ...] = ()
    """Those of them that sent shares."""
    held: dict[str, bytes] = field(default_factory=dict, repr=False)
    """Shares that this device holds, by member: of the seed and of the mask key, one after the other."""
    orders: dict[str, bytes] = field(default_factory=dict)
    """What each step was done with, as a digest."""

    @cached_property
    def own(self) -> Keys:
        """What KEYS says."""
        return Keys.from_bytes(self.keys)

    def to_bytes(self) -> bytes:
        """Write the state."""
        return json.dumps({"version": _VERSION, **asdict(self)}, default=bytes.hex).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read the state.

        Raises:
          PayloadError: the bytes are no such state.
        """
        try:
            raw = json.loads(data)
            if raw.pop("version") != _VERSION:
                raise ValueError("another version")
            state = cls(
                keys=bytes.fromhex(raw.pop("keys")),
                secrets=Secrets(**_bytes_by_name(raw.pop("secrets"))),
                complete=bool(raw.pop("complete")),
                peers={name: Acquaintance(**_bytes_by_name(peer)) for name, peer in raw.pop("peers").items()},
                masking=tuple(raw.pop("masking")),
                held=_bytes_by_name(raw.pop("held")),
                orders=_bytes_by_name(raw.pop("orders")),
                **raw,
            )
            state._check()
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError, PayloadError) as error:
            raise PayloadError(f"the kept state of an exchange is damaged: {error}; the exchange is lost") from error
        return state

    def _check(self) -> None:
        """Check that the parts belong together, as far as later steps rely on it."""
        holding = {self.own.device_id, *self.masking} if "SHARES" in self.orders else set(self.masking)
        if not self.peers.keys() >= set(self.masking) or self.held.keys() != holding:
            raise ValueError("it holds shares of others than its peers")
        if any(len(shares) != 2 * SHARE_BYTES for shares in self.held.values()):
            raise ValueError(f"two shares have {2 * SHARE_BYTES} bytes")
        for peer in self.peers.values():
            check_public_key(peer.channel_key)
            check_public_key(peer.mask_key)


def _bytes_by_name(raw: dict[str, Any]) -> dict[str, bytes]:
    return {name: bytes.fromhex(text) for name, text in raw.items()}

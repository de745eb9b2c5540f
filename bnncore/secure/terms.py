"""What the members of an exchange agree on, and whom they believe."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

__all__ = ["MIN_MEMBERS", "Context", "ExchangeRules", "Signer", "Trust", "exchange_digest"]

MIN_MEMBERS = 3
"""In a sum of two, each sees the other's part."""
_RULES = struct.Struct("<IdI")


@dataclass(frozen=True)
class Context:
    """Which exchange this is. Keys are of one context, and taken in no other."""

    job_id: str
    round_number: int
    attempt: int
    """Exchange of the round, from 1."""
    model_digest: str

    def __str__(self) -> str:
        return f"job {self.job_id}, round {self.round_number}, attempt {self.attempt}"

    def to_bytes(self) -> bytes:
        """Write the context, the same bytes for the same one."""
        texts = [text.encode() for text in (self.job_id, self.model_digest)]
        numbers = struct.pack("<II", self.round_number, self.attempt)
        return numbers + b"".join(struct.pack("<H", len(text)) + text for text in texts)


@dataclass(frozen=True)
class ExchangeRules:
    """What an exchange promises to each member."""

    min_members: int = MIN_MEMBERS
    """Members that it has at least, from the first step to the last."""
    threshold: float = 2 / 3
    """Part of those who hold shares of a secret that opens it: more than it are needed, all at most."""
    degree: int = 0
    """Neighbours of a member (``graph``); 0: all members."""

    def problem(self) -> str | None:
        """Say why rules like these protect nobody; None when they do."""
        if not 0.5 < self.threshold <= 1:
            return (
                f"the threshold must be above 0.5 and at most 1, got {self.threshold}: with half of the shares "
                "or fewer, a coordinator could open both kinds of a device's secrets"
            )
        if not MIN_MEMBERS <= self.min_members < 1 << 32:
            return f"an exchange needs at least {MIN_MEMBERS} members, got min_members {self.min_members}"
        if self.degree != 0 and not MIN_MEMBERS - 1 <= self.degree < 1 << 16:
            return f"a member needs at least {MIN_MEMBERS - 1} neighbours (0: all members), got degree {self.degree}"
        return None

    def shares_needed(self, num_holders: int) -> int:
        """Give the shares that open a secret: more than half of them, whatever the number."""
        return min(math.floor(num_holders * self.threshold) + 1, num_holders)

    def to_bytes(self) -> bytes:
        """Write the rules, the same bytes for the same ones."""
        return _RULES.pack(self.min_members, self.threshold, self.degree)


@dataclass(frozen=True)
class Signer:
    """Who a device is: its certificate, and what its private key signs."""

    certificate_der: bytes
    sign: Callable[[bytes], bytes] = field(repr=False)
    """ECDSA on P-256 with SHA-256: a DER signature."""


@dataclass(frozen=True)
class Trust:
    """Whom a device believes: whoever has a certificate of its fleet, and the key that was seen before."""

    ca_pem: bytes
    """The fleet's authority."""
    pins: Mapping[str, bytes] = field(default_factory=dict)
    """Public keys (SubjectPublicKeyInfo, DER) of devices met before, by name."""


def exchange_digest(context: Context, rules: ExchangeRules) -> bytes:
    """Name an exchange: SHA-256 of its context and rules. All that is derived, sealed and sent is bound to it."""
    return hashlib.sha256(b"bitfleet exchange\0" + rules.to_bytes() + context.to_bytes()).digest()

"""The four payloads of an exchange: what a device's steps are as bytes.

====================  =====================================================================================
KEYS                  what
====================  =====================================================================================
5                     ``bfx`` and version 1; the step, 1
...                   context: round and attempt (uint32 each), job and model digest (uint16 length, UTF-8)
16                    rules: min_members (uint32), threshold (float64), degree (uint32)
...                   device's name (uint8 length, ASCII)
32 + 32               X25519 public keys: of the channels that shares are sealed for, of the masks
...                   certificate (uint16 length, DER) and signature of all before it (uint8 length, DER);
                      both empty where devices have no certificates
====================  =====================================================================================

The others begin with five such bytes and the exchange's digest (32, ``exchange_digest``):

====================  =====================================================================================
SHARES                32: commitment to the seed of the device's own mask; uint16: how many follow, by name:
                      name, nonce (12), sealed shares of seed and mask key (2 x 33 + 16)
MASKED                the masked vector
REVEAL                uint16: how many follow, by name: name, kind (uint8: 1 of the seed, 2 of the mask key),
                      share (33)
====================  =====================================================================================

Numbers are little-endian. Each message has one way of being written, and reading refuses every other.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from bnncore.errors import PayloadError
from bnncore.secure.shamir import SHARE_BYTES, share_value
from bnncore.secure.terms import Context, ExchangeRules

__all__ = ["Keys", "Reveal", "Sealed", "Shares", "masked_bytes", "masked_data"]

_MAGIC = b"bfx\x01"
_KEYS, _SHARES, _MASKED, _REVEAL = range(1, 5)
_KEY_BYTES = 32
_NONCE_BYTES = 12
_SEALED_BYTES = 2 * SHARE_BYTES + 16
_MAX_CERTIFICATE = 4096
_SIGNED = b"bitfleet exchange keys\0"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SEED_SHARE, _MASK_KEY_SHARE = 1, 2


@dataclass(frozen=True)
class Keys:
    """A device's keys of an exchange."""

    context: Context
    rules: ExchangeRules
    device_id: str
    channel_key: bytes
    mask_key: bytes
    certificate: bytes = b""
    signature: bytes = b""

    def signed_bytes(self) -> bytes:
        """Give what the signature is of."""
        return _SIGNED + self._unsigned()

    def to_bytes(self) -> bytes:
        """Write the message."""
        return self._unsigned() + _short(self.signature)

    def _unsigned(self) -> bytes:
        head = _MAGIC + bytes([_KEYS]) + self.context.to_bytes() + self.rules.to_bytes() + _short(_name(self.device_id))
        return head + self.channel_key + self.mask_key + struct.pack("<H", len(self.certificate)) + self.certificate

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read the message.

        Raises:
          PayloadError: it is malformed.
        """
        reader = _Reader("KEYS", data)
        reader.begin(_KEYS)
        round_number, attempt = reader.unpack("<II")
        job_id, model_digest = reader.text(), reader.text()
        rules = ExchangeRules(*reader.unpack("<IdI"))
        message = cls(
            Context(job_id, round_number, attempt, model_digest),
            rules,
            reader.name(),
            reader.take(_KEY_BYTES),
            reader.take(_KEY_BYTES),
            reader.take(reader.unpack("<H")[0]),
            reader.take(reader.unpack("<B")[0]),
        )
        reader.finish()
        if len(message.certificate) > _MAX_CERTIFICATE:
            raise PayloadError(f"KEYS: a certificate has at most {_MAX_CERTIFICATE} bytes")
        if bool(message.certificate) != bool(message.signature):
            raise PayloadError("KEYS: a certificate and a signature come together or not at all")
        problem = rules.problem()
        if problem is not None:
            raise PayloadError(f"KEYS: {problem}")
        return message


@dataclass(frozen=True)
class Sealed:
    """A device's two shares, sealed for one of their holders."""

    nonce: bytes
    data: bytes

    def to_bytes(self) -> bytes:
        """Write them as they are handed to the holder."""
        return self.nonce + self.data

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read them.

        Raises:
          PayloadError: they have another size.
        """
        if len(data) != _NONCE_BYTES + _SEALED_BYTES:
            raise PayloadError(f"sealed shares have {_NONCE_BYTES + _SEALED_BYTES} bytes, got {len(data)}")
        return cls(data[:_NONCE_BYTES], data[_NONCE_BYTES:])


@dataclass(frozen=True)
class Shares:
    """Shares of a device's secrets, sealed for its neighbours."""

    digest: bytes
    commitment: bytes
    sealed: Mapping[str, Sealed]

    def to_bytes(self) -> bytes:
        """Write the message."""
        entries = [_short(_name(name)) + self.sealed[name].to_bytes() for name in sorted(self.sealed)]
        return _head(_SHARES, self.digest) + self.commitment + struct.pack("<H", len(entries)) + b"".join(entries)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read the message.

        Raises:
          PayloadError: it is malformed.
        """
        reader = _Reader("SHARES", data)
        reader.begin(_SHARES)
        digest, commitment = reader.take(32), reader.take(32)
        sealed = {name: Sealed(reader.take(_NONCE_BYTES), reader.take(_SEALED_BYTES)) for name in reader.names()}
        reader.finish()
        return cls(digest, commitment, sealed)


@dataclass(frozen=True)
class Reveal:
    """What takes masks off: a share of each survivor's seed, and of each lost member's mask key."""

    digest: bytes
    shares: Mapping[str, tuple[bool, bytes]]
    """By member: whether it survived, and the share."""

    def to_bytes(self) -> bytes:
        """Write the message."""
        entries = []
        for name in sorted(self.shares):
            survived, share = self.shares[name]
            entries.append(_short(_name(name)) + bytes([_SEED_SHARE if survived else _MASK_KEY_SHARE]) + share)
        return _head(_REVEAL, self.digest) + struct.pack("<H", len(entries)) + b"".join(entries)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read the message.

        Raises:
          PayloadError: it is malformed.
        """
        reader = _Reader("REVEAL", data)
        reader.begin(_REVEAL)
        digest = reader.take(32)
        shares = {}
        for name in reader.names():
            (kind,) = reader.unpack("<B")
            if kind not in (_SEED_SHARE, _MASK_KEY_SHARE):
                raise PayloadError(f"REVEAL: a share is of kind 1 or 2, got {kind}")
            share = reader.take(SHARE_BYTES)
            share_value(share)
            shares[name] = (kind == _SEED_SHARE, share)
        reader.finish()
        return cls(digest, shares)


def masked_bytes(digest: bytes, vector: memoryview) -> bytes:
    """Write the message MASKED."""
    return b"".join([_head(_MASKED, digest), vector])


def masked_data(digest: bytes, data: bytes) -> memoryview:
    """Give the masked vector of the message MASKED, without copying it.

    Raises:
      PayloadError: the message is malformed, or of another exchange.
    """
    head = _head(_MASKED, digest)
    if data[: len(head)] != head:
        raise PayloadError("MASKED: the message is malformed, or of another exchange")
    return memoryview(data)[len(head) :]


def _head(step: int, digest: bytes) -> bytes:
    return _MAGIC + bytes([step]) + digest


def _short(data: bytes) -> bytes:
    return bytes([len(data)]) + data


def _name(text: str) -> bytes:
    if _NAME.fullmatch(text) is None:
        raise PayloadError(f"a device's name is 1 to 64 characters of [A-Za-z0-9._-], got {text!r}")
    return text.encode()


class _Reader:
    def __init__(self, message: str, data: bytes) -> None:
        self._message = message
        self._data = data
        self._position = 0

    def take(self, size: int) -> bytes:
        taken = self._data[self._position : self._position + size]
        if len(taken) != size:
            raise PayloadError(f"{self._message}: the message is cut at byte {len(self._data)}")
        self._position += size
        return taken

    def unpack(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def begin(self, step: int) -> None:
        if self.take(5) != _MAGIC + bytes([step]):
            raise PayloadError(f"{self._message}: the bytes are another message, or of another version")

    def text(self) -> str:
        try:
            return self.take(self.unpack("<H")[0]).decode()
        except UnicodeDecodeError as error:
            raise PayloadError(f"{self._message}: a text that is no UTF-8") from error

    def name(self) -> str:
        data = self.take(self.unpack("<B")[0])
        text = data.decode("ascii", errors="replace")
        if _name(text) != data:
            raise PayloadError(f"{self._message}: a name that is malformed")
        return text

    def names(self) -> Iterator[str]:
        """Read how many entries follow, and the name in front of each: in order, none twice."""
        last = ""
        for _ in range(self.unpack("<H")[0]):
            name = self.name()
            if name <= last:
                raise PayloadError(f"{self._message}: names must be in order and different, got {name} after {last}")
            yield name
            last = name

    def finish(self) -> None:
        if self._position != len(self._data):
            raise PayloadError(f"{self._message}: {len(self._data) - self._position} bytes are left over")

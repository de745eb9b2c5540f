"""Whether the keys that a device is shown are those of the members it is told of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bnncore.errors import ExchangeRefusedError, PayloadError
from bnncore.secure.crypto import certified_key, check_public_key, check_signature
from bnncore.secure.messages import Keys
from bnncore.secure.terms import Context, ExchangeRules, Trust

__all__ = ["Acquaintance", "check_keys", "meet"]


@dataclass(frozen=True)
class Acquaintance:
    """What a device knows of a neighbour."""

    channel_key: bytes
    mask_key: bytes
    identity: bytes
    """Public key of its certificate; empty on a link without certificates."""


def meet(
    context: Context,
    rules: ExchangeRules,
    device_id: str,
    own_keys: bytes,
    keys_of: Mapping[str, bytes],
    trust: Trust | None,
) -> dict[str, Acquaintance]:
    """Check the neighbours' KEYS against each other and this device's own.

    Raises:
      ExchangeRefusedError: one is not what it must be, or belongs to another too.
    """
    own = Keys.from_bytes(own_keys)
    owners = {own.channel_key: device_id, own.mask_key: device_id}
    met = {}
    for name, message in keys_of.items():
        try:
            keys, identity = check_keys(context, rules, name, message, trust)
        except PayloadError as error:
            raise ExchangeRefusedError(
                f"secure aggregation refused ({context}): the keys of {name}: {error}"
            ) from error
        for key in (keys.channel_key, keys.mask_key, *([identity] if identity else [])):
            other = owners.setdefault(key, name)
            if other != name:
                raise ExchangeRefusedError(
                    f"secure aggregation refused ({context}): {name} and {other} have a key in common, so one of them "
                    "stands for both"
                )
        if keys.channel_key == keys.mask_key:
            raise ExchangeRefusedError(f"secure aggregation refused ({context}): {name} uses one key for two purposes")
        met[name] = Acquaintance(keys.channel_key, keys.mask_key, identity)
    return met


def check_keys(
    context: Context, rules: ExchangeRules, name: str, message: bytes, trust: Trust | None
) -> tuple[Keys, bytes]:
    """Read a member's KEYS.

    Returns:
      The keys, and the public key of the certificate that they are signed with; empty on a link without certificates.

    Raises:
      PayloadError: they are malformed, of another exchange or device, or not signed by whom they should be.
    """
    keys = Keys.from_bytes(message)
    if keys.context != context:
        raise PayloadError(f"they were made for another exchange: {keys.context}")
    if keys.rules != rules:
        raise PayloadError(f"its owner was told other rules: {keys.rules} in place of {rules}")
    if keys.device_id != name:
        raise PayloadError(f"they are of {keys.device_id}")
    check_public_key(keys.channel_key)
    check_public_key(keys.mask_key)
    if trust is None:
        return keys, b""
    if not keys.signature:
        raise PayloadError("they are not signed")
    identity = certified_key(trust.ca_pem, keys.certificate, name)
    check_signature(identity, keys.signature, keys.signed_bytes())
    if trust.pins.get(name, identity) != identity:
        raise PayloadError(
            "its certificate is for another key than before. If the device was enrolled anew, its owner knows; then "
            f"forget the old key with: bitfleet-client peers forget {name}"
        )
    return keys, identity

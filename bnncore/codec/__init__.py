"""Codecs: how a model or an update becomes bytes for the wire, and how such bytes are checked.

A new codec is one file beside this one and one row in ``CODECS``.
"""

from __future__ import annotations

from bnncore.codec.base import Codec, PayloadKind, payload_digest
from bnncore.codec.float32 import Float32Codec
from bnncore.codec.int8 import Int8Codec
from bnncore.errors import ConfigurationError

__all__ = ["CODECS", "Codec", "PayloadKind", "get_codec", "payload_digest"]

CODECS: dict[str, Codec] = {codec.name: codec for codec in (Float32Codec(), Int8Codec())}


def get_codec(name: str) -> Codec:
    """Find a codec by its name.

    Raises:
      ConfigurationError: there is no such codec; the message lists the known ones.
    """
    codec = CODECS.get(name)
    if codec is None:
        raise ConfigurationError(f"codec must be one of {sorted(CODECS)}, got {name!r}")
    return codec

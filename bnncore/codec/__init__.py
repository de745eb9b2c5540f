"""Codecs: how a model, an update or a step becomes bytes for the wire, and how such bytes are checked.

A new codec is one file beside this one and one row in ``CODECS``.
"""

from __future__ import annotations

from bnncore.codec.base import KINDS, NONE_LOCAL, Codec, PayloadKind, payload_digest
from bnncore.codec.difference import Difference, DifferenceCodec, round_difference, statistic_bounds
from bnncore.codec.flips import FlipsCodec
from bnncore.codec.float16 import Float16Codec
from bnncore.codec.float32 import Float32Codec
from bnncore.codec.int8 import Int8Codec
from bnncore.codec.sign import SignCodec
from bnncore.codec.signs import SignTensor, encode_signs, encode_steps, fold_many
from bnncore.codec.state import StateCodec
from bnncore.errors import ConfigurationError

__all__ = [
    "CODECS",
    "KINDS",
    "NONE_LOCAL",
    "Codec",
    "Difference",
    "DifferenceCodec",
    "PayloadKind",
    "SignTensor",
    "StateCodec",
    "encode_signs",
    "encode_steps",
    "fold_many",
    "get_codec",
    "get_difference_codec",
    "get_state_codec",
    "payload_digest",
    "round_difference",
    "statistic_bounds",
]

CODECS: dict[str, StateCodec | DifferenceCodec] = {
    codec.name: codec for codec in (Float32Codec(), Float16Codec(), Int8Codec(), SignCodec(), FlipsCodec())
}


def get_codec(name: str) -> StateCodec | DifferenceCodec:
    """Find a codec by its name.

    Raises:
      ConfigurationError: there is no such codec; the message lists the known ones.
    """
    codec = CODECS.get(name)
    if codec is None:
        raise ConfigurationError(f"codec must be one of {sorted(CODECS)}, got {name!r}")
    return codec


def get_state_codec(name: str) -> StateCodec:
    """Find a codec that writes states.

    Raises:
      ConfigurationError: there is no such codec, or it writes differences.
    """
    codec = get_codec(name)
    if not isinstance(codec, StateCodec):
        known = sorted(name for name, codec in CODECS.items() if not codec.is_difference)
        raise ConfigurationError(f"codec must be one of {known} here, got {name!r}, which writes differences")
    return codec


def get_difference_codec(name: str) -> DifferenceCodec:
    """Find a codec that writes differences to a model that both ends hold.

    Raises:
      ConfigurationError: there is no such codec, or it writes states.
    """
    codec = get_codec(name)
    if not isinstance(codec, DifferenceCodec):
        known = sorted(name for name, codec in CODECS.items() if codec.is_difference)
        raise ConfigurationError(f"codec must be one of {known} here, got {name!r}, which writes states")
    return codec

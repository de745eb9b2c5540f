"""What can be fuzzed: a reader of bytes that came from elsewhere, with valid input to start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from bnncore.errors import BitfleetError
from tests.fuzz.mutation import Mutation, mutate

__all__ = ["Target"]

REFUSALS = (BitfleetError, DecodeError)
"""How input may be refused. gRPC itself answers a message that is none of its kind."""


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
      read: takes any bytes, and returns when they load or raises when they are refused; whatever else it raises is a
        finding.
      make_seeds: valid inputs.
      mutate: spoils one.
    """

    read: Callable[[bytes], None]
    make_seeds: Callable[[], list[bytes]]
    mutate: Mutation = mutate

    def loads(self, data: bytes) -> bool:
        """Say whether the input loads; anything but a refusal passes through."""
        try:
            self.read(data)
        except REFUSALS:
            return False
        return True

"""What a replica has told the others and PostgreSQL has not taken yet: pieces of messages, the oldest first.

A database that takes nothing must not fill the memory: there is a bound, beyond which the outbox is full. A message is
put in whole, so that the bound may be exceeded by the last one.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_PAYLOAD_BYTES = 7900
"""PostgreSQL takes payloads of less than 8000 bytes."""
_PAYLOADS_AT_ONCE = 256
"""By one statement: 2 MB."""
_MOST_BYTES = 64 << 20
"""What a fleet of 10,000 devices has to say at once is a tenth of it."""


class Piece(NamedTuple):
    """One notification."""

    channel: str
    payload: str
    is_last: bool
    """Of its message."""


class Outbox:
    """A replica's messages on their way; for one event loop.

    Args:
      sender_id: the replica's id.

    Attributes:
      num_bytes: of what waits.
    """

    def __init__(self, sender_id: str) -> None:
        self.num_bytes = 0
        self._sender_id = sender_id
        self._pieces: deque[Piece] = deque()
        self._has_some = asyncio.Event()
        self._is_told = asyncio.Event()
        self._is_told.set()

    @property
    def is_full(self) -> bool:
        """Whether so much waits that PostgreSQL cannot be taking it."""
        return self.num_bytes > _MOST_BYTES

    def put(self, channel: str, number: int, message: Mapping[str, Any]) -> None:
        """Let a message wait for its turn."""
        for piece in self._cut(channel, number, json.dumps(message, separators=(",", ":"))):
            self._pieces.append(piece)
            self.num_bytes += len(piece.payload)
        self._has_some.set()
        self._is_told.clear()

    async def take(self) -> list[Piece]:
        """Wait for pieces, and take those out that one statement sends; ``told`` is to be called when it has."""
        await self._has_some.wait()
        taken = [self._pieces.popleft() for _ in range(min(len(self._pieces), _PAYLOADS_AT_ONCE))]
        self.num_bytes -= sum(len(piece.payload) for piece in taken)
        if not self._pieces:
            self._has_some.clear()
        return taken

    def told(self) -> None:
        """Note that PostgreSQL has what was taken out."""
        if not self._pieces:
            self._is_told.set()

    async def wait_until_told(self) -> None:
        """Wait until PostgreSQL has everything."""
        await self._is_told.wait()

    def clear(self) -> int:
        """Drop what waits; returns how many messages that were."""
        dropped = sum(piece.is_last for piece in self._pieces)
        self._pieces.clear()
        self.num_bytes = 0
        self._has_some.clear()
        self._is_told.set()
        return dropped

    def _cut(self, channel: str, number: int, text: str) -> Iterator[Piece]:
        length = _PAYLOAD_BYTES - len(f"{self._sender_id} {number} ") - 2 * len(f"{len(text)} ")
        count = -(-len(text) // length)
        for index in range(count):
            part = text[index * length : (index + 1) * length]
            yield Piece(channel, f"{self._sender_id} {number} {index} {count} {part}", index == count - 1)

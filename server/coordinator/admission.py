"""Who may go on: bounds on what many take together, so that memory does not grow with their number.

In a room and at turns one waits, first come, first served; where all places are taken one is sent away. For one event
loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator

from server.errors import NotReadyError


class Places:
    """So many at the same time, of one and in all; who comes beyond that is sent away."""

    def __init__(self, what: str, *, in_all: int, of_one: int) -> None:
        self._what = what
        self._in_all = in_all
        self._of_one = of_one
        self._taken: Counter[str] = Counter()
        self._num_taken = 0

    @property
    def num_taken(self) -> int:
        """Places that are taken now."""
        return self._num_taken

    @contextlib.contextmanager
    def hold(self, whose: str) -> Iterator[None]:
        """Hold a place for the block.

        Raises:
          NotReadyError: none is free; the message says of which kind there are too many.
        """
        self.take(whose)
        try:
            yield
        finally:
            self.give_back(whose)

    def take(self, whose: str) -> None:
        """Take a place; raises NotReadyError as ``hold``."""
        if self._taken[whose] >= self._of_one:
            raise NotReadyError(f"{self._of_one} {self._what} of {whose} are open; no more are taken at the same time")
        if self._num_taken >= self._in_all:
            raise NotReadyError(f"{self._in_all} {self._what} are open; try again in a moment")
        self._taken[whose] += 1
        self._num_taken += 1

    def give_back(self, whose: str) -> None:
        """Give a place back."""
        self._num_taken -= 1
        self._taken[whose] -= 1
        if self._taken[whose] == 0:
            del self._taken[whose]


class Room:
    """A number of bytes that may be taken at once; something larger than all of it is let in alone."""

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        self._taken = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextlib.asynccontextmanager
    async def take(self, num_bytes: int) -> AsyncIterator[None]:
        """Wait until there is room for so many bytes, and hold it for the block."""
        if self._waiting or not self._fits(num_bytes):
            place = (num_bytes, asyncio.get_running_loop().create_future())
            self._waiting.append(place)
            try:
                await place[1]
            except asyncio.CancelledError:
                if place in self._waiting:
                    self._waiting.remove(place)
                    self._admit()
                else:
                    self._give_back(num_bytes)
                raise
        else:
            self._taken += num_bytes
        try:
            yield
        finally:
            self._give_back(num_bytes)

    def _fits(self, num_bytes: int) -> bool:
        return self._taken == 0 or self._taken + num_bytes <= self._num_bytes

    def _give_back(self, num_bytes: int) -> None:
        self._taken -= num_bytes
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            num_bytes, future = self._waiting.popleft()
            if future.cancelled():
                continue
            self._taken += num_bytes
            future.set_result(None)


class Turns:
    """A number of places for uploads that are received; who takes long gives way to those who wait."""

    def __init__(self, places: int, turn_s: float, clock: Callable[[], float]) -> None:
        self._places = asyncio.Semaphore(places)
        self._turn_s = turn_s
        self._clock = clock

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """Wait for a place, and hold it for the block."""
        turn = Turn(self._places, self._turn_s, self._clock)
        await turn.begin()
        try:
            yield turn
        finally:
            turn.end()


class Turn:
    """One upload's place."""

    def __init__(self, places: asyncio.Semaphore, turn_s: float, clock: Callable[[], float]) -> None:
        self._places = places
        self._turn_s = turn_s
        self._clock = clock
        self._ends_at: float | None = None

    async def begin(self) -> None:
        """Wait for a place."""
        await self._places.acquire()
        self._ends_at = self._clock() + self._turn_s

    def end(self) -> None:
        """Give the place up, unless that was done."""
        if self._ends_at is not None:
            self._ends_at = None
            self._places.release()

    @property
    def is_over(self) -> bool:
        """Say whether the turn is over and others wait."""
        return self._ends_at is not None and self._clock() >= self._ends_at and self._places.locked()

    async def give_way(self) -> None:
        """Where the turn is over and others wait, let them go first."""
        if self.is_over:
            self.end()
            await self.begin()

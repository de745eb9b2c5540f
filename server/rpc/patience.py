"""How long a call waits for the device's next message."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from bitfleet.v1 import fleet_pb2 as pb
from server.errors import SlowDeviceError

_T = TypeVar("_T")


async def next_request(requests: AsyncIterator[_T], timeout_s: float, what: str) -> _T | None:
    """Return the next request, or None at the end of the stream.

    Raises:
      SlowDeviceError: nothing came in time.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await anext(requests, None)
    except TimeoutError:
        raise SlowDeviceError(f"{what} was expected within {timeout_s:g} s, nothing came; connect again") from None


class Pace:
    """The pace of an upload: it may keep the coordinator waiting so long, and longer only for the bytes that come.

    A device that sends a little now and then is as much of a burden as one that is silent, so what it has used up of
    the waiting comes back with its bytes alone.

    Args:
      idle_s: how long it may be silent.
      bytes_per_s: how fast it must be in the long run.
      clock: seconds; only differences matter.
    """

    def __init__(self, idle_s: float, bytes_per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._idle_s = self._left_s = idle_s
        self._bytes_per_s = bytes_per_s
        self._clock = clock

    async def next(self, requests: AsyncIterator[pb.SubmitUpdateRequest]) -> pb.SubmitUpdateRequest | None:
        """Return the next part, or None at the end of the stream.

        Raises:
          SlowDeviceError: it did not come in the time that is left.
        """
        began = self._clock()
        try:
            async with asyncio.timeout(self._left_s):
                request = await anext(requests, None)
        except TimeoutError:
            raise SlowDeviceError(
                f"the upload was silent, or slower than {self._bytes_per_s:g} bytes a second, for {self._idle_s:g} s; "
                "send it again"
            ) from None
        if request is not None:
            earned_s = request.ByteSize() / self._bytes_per_s
            self._left_s = min(self._idle_s, self._left_s - (self._clock() - began) + earned_s)
        return request

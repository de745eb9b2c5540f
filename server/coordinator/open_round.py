"""What taking an update in asks of the round that the update is for, wherever that round is played."""

from __future__ import annotations

from typing import Protocol

from server.coordinator.messages import SubmitAnswer, UpdateHeader
from server.coordinator.upload import Upload
from server.storage.payloads import BlobWriter
from server.strategies import Update


class OpenRound(Protocol):
    """A round that wants an update whose header it has judged; for the one call that brings it."""

    def count(self, *, up: int) -> None:
        """Count serialised bytes that came from the device."""

    def read(self, payload: BlobWriter) -> Update | None:
        """Decode and check a whole payload; None where it is a step of an exchange. Blocking.

        Raises:
          IncompatibleError: it is not valid.
        """

    async def offer(self, upload: Upload) -> SubmitAnswer:
        """Offer a whole and valid update; returns when it is durable, or refused.

        Raises:
          NotReadyError: it was not counted now; sending it again is right.
        """

    async def refuse(self, reason: str) -> SubmitAnswer:
        """Refuse an invalid update, and write that down."""


class Rounds(Protocol):
    """All rounds that are open now."""

    async def judge(self, header: UpdateHeader) -> SubmitAnswer | OpenRound:
        """Judge an update by its header.

        Returns:
          The answer when its bytes need not be read, else the round that wants them.

        Raises:
          NotReadyError: it cannot be judged now; sending it again is right.
          TooManyRequestsError: too many of the device's updates were refused in this round.
        """

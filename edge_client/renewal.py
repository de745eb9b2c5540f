"""Keeps the device's certificate good while the agent lives; the work is done by a child that ends at once.

::

    due          a third of the certificate's life is left: renew it, connect with the new one
    in trouble   the link fails and the certificate could be why (its dates, or failures in a row): renewing tells
                 whether the clock is wrong, the coordinator refuses this device, or nobody is there
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from edge_client.errors import IdentityRefusedError
from edge_client.state_dir import StateDir
from edge_client.trainer_process import ask_child
from edge_client.transport import Transport

__all__ = ["Renewal"]

logger = logging.getLogger(__name__)

CHECK_INTERVAL_S = 3600.0
"""Longest sleep between looks at the clock, which may be set in the meantime."""

RETRY_S = 60.0
"""After a renewal that failed."""

_FIRST_LOOK = 2
"""Failures in a row after which the certificate is looked at; then at twice as many, and so on."""


class Renewal:
    """Renews one device's certificate.

    Args:
      state: the state folder of a device that is enrolled.
      transport: connects anew with each new certificate.
    """

    def __init__(self, state: StateDir, transport: Transport) -> None:
        self._state = state
        self._folder = state.identity
        self._transport = transport
        self._working = asyncio.Lock()

    async def run(self) -> None:
        """Renew whenever it is due, until cancelled.

        Raises:
          IdentityRefusedError: the coordinator gives this device no certificate any more.
        """
        while True:
            left_s = self._renew_at() - time.time()
            if left_s > 0:
                await asyncio.sleep(min(left_s, CHECK_INTERVAL_S))
            elif await self._renew():
                await asyncio.sleep(RETRY_S)

    async def look_into(self, failures: int) -> str:
        """Find out, after failures of the link in a row, whether the certificate is why.

        Returns:
          What was found out; empty: nothing, or it was and is mended.

        Raises:
          IdentityRefusedError: the coordinator does not take this device (any more).
        """
        identity = self._folder.read()
        is_in_date = identity is not None and identity.not_before <= time.time() <= identity.not_after
        if is_in_date and (failures < _FIRST_LOOK or failures & (failures - 1)):
            return ""
        return await self._renew()

    def _renew_at(self) -> float:
        identity = self._folder.read()
        return 0.0 if identity is None else identity.renew_at

    async def _renew(self) -> str:
        """Renew; returns why it could not be done, empty when it was."""
        async with self._working:
            event: dict[str, Any] = await ask_child("edge_client.enrolment", "renew", str(self._state.root)) or {}
            self._transport.talk.add("renewal", event.get("bytes", 0))
            reason = str(event.get("reason", "the process that renews certificates ended without an answer"))
            match event.get("outcome"):
                case "renewed":
                    logger.info("certificate renewed")
                    await self._transport.show(self._folder.credentials())
                    return ""
                case "refused":
                    raise IdentityRefusedError(reason)
            logger.warning("certificate not renewed: %s", reason)
            return reason

"""Tells systemd, where it started this process with ``Type=notify``, that it is ready, alive, and about to stop.

The protocol of sd_notify(3): datagrams of ``NAME=value`` to the socket that ``$NOTIFY_SOCKET`` names. Elsewhere nothing
happens. The sign of life comes from the event loop itself: a loop that is stuck gives none, and is started anew.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Mapping

__all__ = ["ServiceManager"]

logger = logging.getLogger(__name__)


class ServiceManager:
    """The service manager that started this process, if one did.

    Args:
      environ: has ``NOTIFY_SOCKET``, and ``WATCHDOG_USEC`` with ``WATCHDOG_PID`` where signs of life are waited for.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
        is_ours = pid in ("", str(os.getpid()))
        self._limit_s = int(usec) / 1e6 if usec.isdecimal() and is_ours else 0.0

    def ready(self) -> None:
        """Say that this process has begun its work."""
        self._tell("READY=1")

    def stopping(self) -> None:
        """Say that it is about to end."""
        self._tell("STOPPING=1")

    async def keep_informed(self) -> None:
        """Give signs of life until cancelled, twice in the time after which one is missed."""
        while self._limit_s > 0:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(self._limit_s / 2)

    def _tell(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.setblocking(False)
                channel.sendto(text.encode(), self._address)
        except OSError as error:
            logger.warning("the service manager cannot be told %s: %s", text, error)

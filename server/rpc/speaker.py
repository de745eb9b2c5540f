"""Who speaks in a call: the device that the connection's certificate names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc

from server.errors import ForbiddenError, UnauthenticatedError
from server.identity.devices import Devices, Peer


class Speaker:
    """The other end of a call; asked again before every message, since a device may be shut out at any time."""

    __slots__ = ("_devices", "_peer", "name")

    def __init__(self, devices: Devices | None, peer: Peer | None, name: str) -> None:
        self._devices = devices
        self._peer = peer
        self.name = name
        """Of whom its calls are counted: the device, or the connection where nobody is asked who it is."""

    @property
    def labels(self) -> Mapping[str, str]:
        """What the device's operator calls it."""
        if self._devices is None or self._peer is None:
            return {}
        return self._devices.check(self._peer).labels

    @property
    def key_digest(self) -> str | None:
        """Of the key that the connection's certificate is of; None where nobody is asked who it is."""
        return None if self._peer is None else self._peer.key_digest

    def check(self, device_id: str) -> None:
        """Check that the speaker may speak now, in the name of this device.

        Raises:
          ForbiddenError: it may not: it was revoked, has left, or the name is another's.
        """
        if self._devices is None or self._peer is None:
            return
        self._devices.check(self._peer)
        if device_id != self._peer.device_id:
            raise ForbiddenError(
                f"the certificate is of device {self._peer.device_id}, which may not speak for {device_id[:80]!r}"
            )


async def speaker_of(context: grpc.aio.ServicerContext[Any, Any], devices: Devices | None) -> Speaker:
    """Find out who speaks in a call.

    Args:
      context: of the call.
      devices: None believes everyone.

    Raises:
      UnauthenticatedError: the connection's certificate is no device's, or has expired.
      ForbiddenError: the device may not speak.
    """
    if devices is None:
        return Speaker(None, None, context.peer())
    certificate = next(iter(context.auth_context().get("x509_pem_cert", ())), None)
    if certificate is None:
        raise UnauthenticatedError("a device's certificate is needed; enrol with: bitfleet-client enroll")
    peer = devices.peer_of(certificate)
    await devices.admit(peer)
    return Speaker(devices, peer, peer.device_id)

"""Which protocol numbers this coordinator speaks, and how one is agreed on."""

from __future__ import annotations

from server.errors import IncompatibleDeviceError

PROTOCOL_MIN = 1
PROTOCOL_MAX = 1

_UPGRADE = 'pip install --upgrade "bitfleet=={version}"'


def choose_protocol(device_min: int, device_max: int, *, server_version: str) -> int:
    """Return the newest protocol number that both sides speak.

    Raises:
      IncompatibleDeviceError: there is none; the message says which side to upgrade and how.
    """
    chosen = min(device_max, PROTOCOL_MAX)
    if chosen >= max(device_min, PROTOCOL_MIN):
        return chosen
    ranges = (
        f"the device speaks protocols {device_min} to {device_max}, "
        f"this coordinator (bitfleet {server_version}) {PROTOCOL_MIN} to {PROTOCOL_MAX}"
    )
    if device_max < PROTOCOL_MIN:
        command = _UPGRADE.format(version=server_version)
        raise IncompatibleDeviceError(f"{ranges}. Upgrade the device with: {command}")
    raise IncompatibleDeviceError(f"{ranges}. Upgrade the coordinator with: pip install --upgrade 'bitfleet[server]'")

"""Checks of a device's place in a fleet: the way to the coordinator, its clock, and the certificate."""

from __future__ import annotations

import socket
import stat
import time
from collections.abc import Iterator

from edge_client.doctor.checks import Check, Mark
from edge_client.https import Coordinator
from edge_client.identity import Identity
from edge_client.state_dir import StateDir

__all__ = ["check_certificate", "check_network"]

CONNECT_S = 5.0
WRONG_CLOCK_S = 60.0


def check_network(state: StateDir) -> Check:
    """Reach the coordinator where devices connect, and over HTTPS, whose answer tells the time."""
    identity = state.identity.read()
    if identity is None:
        return Check("network", Mark.SKIPPED, "not enrolled", "join a fleet with bitfleet-client enroll")
    host, _, port = identity.server.rpartition(":")
    try:
        began = time.perf_counter()
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S):
            seconds = time.perf_counter() - began
    except OSError as error:
        advice = "is the coordinator running, and does a firewall let this port through?"
        return Check("network", Mark.WRONG, f"{identity.server} cannot be reached: {error}", advice)
    offset_s = Coordinator(identity.enrolled_at, state.identity.credentials().ca_pem).clock_offset_s()
    facts = {"server": identity.server, "connect_seconds": seconds, "clock_offset_s": offset_s}
    text = f"{identity.server} in {1e3 * seconds:.0f} ms; its clock differs by {abs(offset_s):.0f} s"
    if abs(offset_s) > WRONG_CLOCK_S:
        return Check("network", Mark.WRONG, text, "set this device's clock: no certificate holds like this", facts)
    return Check("network", Mark.OK, text, "", facts)


def check_certificate(state: StateDir) -> Check:
    """Its dates, and who may read the key."""
    identity = state.identity.read()
    if identity is None:
        return Check("certificate", Mark.SKIPPED, "not enrolled")
    state.identity.credentials()
    for mark, text, advice in _faults(state, identity):
        return Check("certificate", mark, text, advice, {"ends_at": identity.not_after})
    days = (identity.not_after - time.time()) / 86400
    text = f"of {identity.device_id}, good for {days:.1f} days, renewed by the agent"
    return Check("certificate", Mark.OK, text, "", {"ends_at": identity.not_after})


def _faults(state: StateDir, identity: Identity) -> Iterator[tuple[Mark, str, str]]:
    key = state.identity.key_file
    mode = stat.S_IMODE(key.stat().st_mode)
    if mode & 0o077:
        yield Mark.WRONG, f"others may read the key {key} (mode {mode:04o})", f"chmod 600 {key}"
    now = time.time()
    if now < identity.not_before:
        yield Mark.WRONG, "the certificate is not valid yet", "is the clock right?"
    if now > identity.not_after:
        yield Mark.WRONG, "the certificate has ended", "start the agent to renew it, or enrol again"
    if now > identity.renew_at:
        yield Mark.NOTE, "the certificate ends soon", "start the agent: it renews it"

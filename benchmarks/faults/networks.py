"""Private networks: the coordinator's, and one of each device that a pair of virtual Ethernet ports joins to it.

A network belongs to the processes in it and ends with them, so nothing is left behind. A cable that is pulled is a port
that is set down: what is sent is gone, and nobody is told.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import socket
import subprocess
import time
from pathlib import Path

COORDINATOR_HOST = "10.77.0.1"
_BRIDGE = "fleet"
_CLONE_NEWNET = 0x40000000
_WAIT_S = 20.0
_numbers = itertools.count()


def own_network() -> str:
    """Give this process, and those that it starts, a network of its own with a bridge in it; says why not."""
    if problem := _leave_network():
        return problem
    for command in (
        f"link add {_BRIDGE} type bridge",
        f"addr add {COORDINATOR_HOST}/24 dev {_BRIDGE}",
        f"link set {_BRIDGE} up",
    ):
        if problem := _ip(command):
            return problem
    return ""


def host_of(number: int) -> str:
    """The address of a device, by its number."""
    return f"10.77.0.{10 + number}"


def join(pid: int) -> str:
    """Lay a cable from the bridge to the network of a process; gives the name of its end here."""
    port = f"cable{next(_numbers)}"
    own, end = os.readlink("/proc/self/ns/net"), time.monotonic() + _WAIT_S
    while os.readlink(f"/proc/{pid}/ns/net") == own and time.monotonic() < end:
        time.sleep(0.01)
    for command in (
        f"link add {port} type veth peer name eth0 netns {pid}",
        f"link set {port} master {_BRIDGE}",
        f"link set {port} up",
    ):
        if problem := _ip(command):
            raise OSError(f"ip {command}: {problem}")
    return port


def set_cable(port: str, state: str) -> None:
    """Pull a cable (``down``) or plug it in (``up``)."""
    if problem := _ip(f"link set {port} {state}"):
        raise OSError(f"the cable {port} cannot be set {state}: {problem}")


def enter_network(host: str) -> None:
    """In a device's process: begin a network of its own, and wait for the cable."""
    if problem := _leave_network():
        raise OSError(problem)
    end = time.monotonic() + _WAIT_S
    while "eth0" not in {name for _, name in socket.if_nameindex()} and time.monotonic() < end:
        time.sleep(0.01)
    for command in (f"addr add {host}/24 dev eth0", "link set eth0 up"):
        if problem := _ip(command):
            raise OSError(f"ip {command}: {problem}")


def _leave_network() -> str:
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
        return f"no network namespace: {os.strerror(ctypes.get_errno())}"
    return _ip("link set lo up")


def _ip(command: str) -> str:
    tool = next((path for path in ("/usr/sbin/ip", "/sbin/ip", "/bin/ip") if Path(path).exists()), "ip")
    return subprocess.run([tool, *command.split()], capture_output=True, text=True, check=False).stderr.strip()

"""``bitfleet-client peers``: devices that this one has added up updates with."""

from __future__ import annotations

import argparse
from typing import Any

from edge_client.commands.options import Commands, add_json, add_state, state_of
from edge_client.commands.output import show
from edge_client.errors import SettingsError

__all__ = ["add_parsers"]


def add_parsers(commands: Commands) -> None:
    """Add the command."""
    peers = commands.add_parser("peers", help="list devices that this one has added up updates with, by their keys")
    peers.add_argument("action", nargs="?", choices=["list", "forget"], default="list", help="default: list")
    peers.add_argument("device", nargs="?", metavar="ID", help="whose key to forget, to take another one from it")
    add_json(peers)
    add_state(peers)
    peers.set_defaults(act=_peers)


def _peers(arguments: argparse.Namespace) -> int:
    state, device = state_of(arguments), arguments.device
    facts: dict[str, Any]
    if arguments.action == "forget":
        if device is None or not state.peers.forget(device):
            raise SettingsError(
                f"peers forget ID needs the name of a device that was met, got {device}; see bitfleet-client peers"
            )
        text = f"the key of {device} is forgotten: the next one that it shows is believed"
        show({"forgotten": device}, text, arguments.json)
        return 0
    peers = state.peers.read()
    facts = {name: {"fingerprint": peer.fingerprint, "since": peer.since} for name, peer in peers.items()}
    lines = [f"{'device':<24} {'met first':<25}  SHA-256 of its public key"]
    lines += [f"{name:<24} {peer.since:<25}  {peer.fingerprint}" for name, peer in peers.items()]
    show(facts, "\n".join(lines), arguments.json)
    return 0

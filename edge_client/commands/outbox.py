"""``bitfleet-client outbox``: every message that left this device."""

from __future__ import annotations

import argparse

from edge_client.commands.options import Commands, add_json, add_state, state_of
from edge_client.commands.output import show
from edge_client.outbox_listing import list_outbox, verify_outbox

__all__ = ["add_parsers"]


def add_parsers(commands: Commands) -> None:
    """Add the command."""
    outbox = commands.add_parser("outbox", help="list every message that left this device")
    outbox.add_argument("--verify", action="store_true", help="check that nothing in the list was changed since")
    outbox.add_argument("--noted", metavar="DIGEST", help="verify, and that the head noted earlier is still in it")
    add_json(outbox)
    add_state(outbox)
    outbox.set_defaults(act=_outbox)


def _outbox(arguments: argparse.Namespace) -> int:
    state = state_of(arguments)
    if arguments.verify or arguments.noted:
        facts, text = verify_outbox(state, arguments.noted)
    else:
        facts, text = list_outbox(state)
    show(facts, text, arguments.json)
    return 0 if facts.get("intact", True) else 1

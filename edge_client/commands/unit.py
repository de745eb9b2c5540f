"""``bitfleet-client unit``: a systemd unit that keeps the agent running."""

from __future__ import annotations

import argparse

from bnncore.unit import render_unit
from edge_client.commands.options import Commands

__all__ = ["add_parsers"]


def add_parsers(commands: Commands) -> None:
    """Add the command."""
    unit = commands.add_parser("unit", help="print a systemd unit that keeps the agent running, and how to install it")
    unit.set_defaults(act=_unit)


def _unit(_: argparse.Namespace) -> int:
    print(render_unit("edge_client", "bitfleet-client"), end="")
    return 0

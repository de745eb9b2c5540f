"""``bitfleet-server top``."""

from __future__ import annotations

import argparse

from rich.console import Console

from server.cli.asking import connect
from server.client import FleetClient
from server.top import show_once, watch


def show_top(arguments: argparse.Namespace) -> int:
    """Show the fleet live, or once."""
    with connect(arguments) as connection:
        fleet, console = FleetClient.over(connection), Console()
        (show_once if arguments.once else watch)(fleet, connection.url, console)
    return 0

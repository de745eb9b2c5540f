"""The options that say which coordinator a command asks; ``server.cli.asking`` follows them."""

from __future__ import annotations

import argparse

DEFAULT_SERVER = "http://127.0.0.1:8080"
KEY_VARIABLE = "BITFLEET_API_KEY"


def add_connection_options(parser: argparse.ArgumentParser) -> None:
    """Add what says which coordinator is asked."""
    parser.add_argument("--server", metavar="URL", help="coordinator (the one that runs on this machine)")
    parser.add_argument("--ca", metavar="FILE", help="certificate by which it is known (what --state holds)")
    parser.add_argument("--key-file", metavar="FILE", help=f"API key; ${KEY_VARIABLE} holds one too")
    parser.add_argument("--state", metavar="DIR", help="state folder of the coordinator on this machine")
    parser.add_argument("--json", action="store_true", help="print JSON for machines")

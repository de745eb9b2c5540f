"""Options that several commands have."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TypeAlias

from edge_client.settings import default_state_dir
from edge_client.state_dir import StateDir

__all__ = ["Commands", "add_data", "add_json", "add_policy", "add_state", "data_of", "state_of"]

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add ``--data`` and ``--dataset``."""
    parser.add_argument("--data", metavar="DIR", help="folder with this device's data; nothing in it ever leaves")
    parser.add_argument("--dataset", metavar="NAME", help="layout of the data (default: detected)")


def add_state(parser: argparse.ArgumentParser) -> None:
    """Add ``--state``."""
    parser.add_argument("--state", metavar="DIR", help="state folder (default: ~/.local/state/bitfleet)")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="PATH", help="write JSON to PATH (default: standard output)"
    )


def add_policy(parser: argparse.ArgumentParser) -> None:
    """Add ``--policy``."""
    parser.add_argument("--policy", metavar="FILE", help="the rules (default: ~/.config/bitfleet/policy.toml)")


def state_of(arguments: argparse.Namespace) -> StateDir:
    """Name the state folder: as given, else as the environment says, else the usual one."""
    given = arguments.state or os.environ.get("BITFLEET_CLIENT_STATE")
    return StateDir(Path(given) if given else default_state_dir(os.environ))


def data_of(arguments: argparse.Namespace) -> Path | None:
    """Name the data folder: as given, else as the environment says; None: what the data set finds by itself."""
    given = arguments.data or os.environ.get("BITFLEET_CLIENT_DATA")
    return Path(given) if given else None

"""How the command line asks a running coordinator: where it is, by what it is known, with which key.

On the coordinator's machine all three are in its state folder. Elsewhere ``--server`` and ``--ca`` say the first two,
and the key comes from ``$BITFLEET_API_KEY`` or ``--key-file``: never from an argument, which other users could see. The
key in a state folder is sent to the coordinator of that folder alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from bnncore.errors import ConfigurationError
from server.cli.connection import DEFAULT_SERVER, KEY_VARIABLE
from server.client.connection import Connection

_SHORT = 24
"""Cells of so many characters at most are not folded: a time, a state, a device's name."""


@dataclass(frozen=True)
class Endpoint:
    """Where a coordinator is, and how it is spoken to."""

    url: str
    enrol_url: str
    """The same by the name that devices know."""
    ca_pem: str | None
    key: str | None = field(repr=False)


def ask(arguments: argparse.Namespace, method: str, path: str, **options: Any) -> Any:
    """Ask the coordinator and return its JSON answer, None when it is empty; see ``Connection.request``."""
    with connect(arguments) as connection:
        return connection.json(method, path, **options)


def ask_all(arguments: argparse.Namespace, path: str, limit: int | None = None) -> list[Any]:
    """Ask the coordinator for a list, or so many of its first entries; see ``Connection.request``."""
    with connect(arguments) as connection:
        return list(islice(connection.entries(path, {"limit": min(limit or 500, 500)}), limit))


def connect(arguments: argparse.Namespace) -> Connection:
    """Connect to the coordinator that is meant.

    Args:
      arguments: of ``add_connection_options``.

    Raises:
      ConfigurationError: the address or a file makes no sense.
    """
    endpoint = find_endpoint(arguments)
    return Connection(endpoint.url, key=endpoint.key, ca_pem=endpoint.ca_pem)


def find_endpoint(arguments: argparse.Namespace) -> Endpoint:
    """Find out which coordinator is meant.

    Raises:
      ConfigurationError: a file cannot be read, or a key would be sent in the clear.
    """
    state = Path(arguments.state or os.environ.get("BITFLEET_SERVER_STATE") or "bitfleet-state")
    local = _local(state)
    is_local = local is not None and arguments.server in (None, local.url)
    url = arguments.server or (local.url if local else DEFAULT_SERVER)
    ca_pem = local.ca_pem if local and is_local else None
    key = os.environ.get(KEY_VARIABLE) or (local.key if local and is_local else None)
    try:
        if arguments.ca is not None:
            ca_pem = Path(arguments.ca).read_text()
        if arguments.key_file is not None:
            key = Path(arguments.key_file).read_text().strip()
    except OSError as error:
        raise ConfigurationError(f"cannot read {error.filename}: {error.strerror}") from error
    if key is not None and not url.startswith("https://"):
        key = None  # a coordinator without TLS asks for none, and whoever else answers there must not get it
    return Endpoint(url, local.enrol_url if local and is_local else url, ca_pem, key)


def _local(state: Path) -> Endpoint | None:
    try:
        word = json.loads((state / "endpoint.json").read_text())
        key_file = state / "identity" / "admin.key"
        key = key_file.read_text().strip() if os.access(key_file, os.R_OK) else None
        return Endpoint(str(word["url"]), str(word["enrol_url"]), word["ca_pem"], key)
    except (OSError, ValueError, KeyError):
        return None


def show(arguments: argparse.Namespace, value: Any, print_readable: Any) -> int:
    """Print an answer, for machines when they ask."""
    if arguments.json:
        json.dump(value, sys.stdout, indent=2)
        print()
    else:
        print_readable()
    return 0


def print_table(
    columns: list[str], rows: Iterable[list[Any]], *, usual: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Print rows under their columns' names.

    A terminal is spared the columns of ``usual`` where every row has nothing but what is usual to say.
    Long texts are folded between words to fit a terminal. A short cell stays whole and a word is never broken, so that
    what was printed can be searched and copied: a table too wide for the terminal is left to it to fold. Whatever reads
    the output instead of a terminal gets a line for each row.
    """
    lines = [columns, *(["-" if value is None else str(value) for value in row] for row in rows)]
    console = Console(markup=False, emoji=False)  # names and reasons are text, whatever brackets are in them
    told = [
        cells
        for cells in zip(*lines, strict=True)
        if not console.is_terminal or set(cells[1:]) != {usual.get(cells[0])}
    ]
    table = Table(box=None, pad_edge=False)
    for cells in told:
        whole = max(map(cell_len, cells)) <= _SHORT
        pieces = cells if whole else (word for cell in cells for word in cell.split())
        table.add_column(cells[0], no_wrap=whole, min_width=max(map(cell_len, pieces), default=0))
    for row in zip(*(cells[1:] for cells in told), strict=True):
        table.add_row(*row)
    wanted = Measurement.get(console, console.options.update_width(sys.maxsize), table)
    console.width = max(console.width, wanted.minimum) if console.is_terminal else wanted.maximum
    console.print(table)

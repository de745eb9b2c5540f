"""``bitfleet-client enroll`` and ``leave``: join a fleet, and leave it."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from pathlib import Path

from bnncore.errors import BitfleetError
from edge_client.commands.options import Commands, add_state, state_of
from edge_client.commands.output import utc

__all__ = ["add_parsers"]

TOKEN_VARIABLE = "BITFLEET_TOKEN"


def add_parsers(commands: Commands) -> None:
    """Add the two commands."""
    enrol = commands.add_parser("enroll", help="join a fleet: make this device's key, get its certificate")
    enrol.add_argument("--server", metavar="URL", required=True, help="https://HOST:PORT of the coordinator")
    enrol.add_argument(
        "--ca-fingerprint", metavar="SHA256", required=True, help="what the coordinator is known by; it prints it"
    )
    token = enrol.add_mutually_exclusive_group()
    token.add_argument("--token-file", metavar="FILE", help="file with the token; - = standard input (default: asked)")
    token.add_argument(
        "--token", help=f"the token, which other users of this machine can see; better: ${TOKEN_VARIABLE}"
    )
    enrol.add_argument("--device-id", metavar="ID", help="this device's name (default: made once and kept)")
    add_state(enrol)
    enrol.set_defaults(act=_enrol)
    leave = commands.add_parser("leave", help="leave the fleet: tell the coordinator, remove key and certificate")
    leave.add_argument("--purge", action="store_true", help="remove all that bitfleet keeps here, the outbox too")
    leave.add_argument("--offline", action="store_true", help="without telling the coordinator")
    add_state(leave)
    leave.set_defaults(act=_leave)


def _enrol(arguments: argparse.Namespace) -> int:
    from edge_client.enrolment import enrol  # cryptography is large: only these two commands need it

    state = state_of(arguments)
    with state.lock():
        token = _token(arguments)
        identity = enrol(state, arguments.server, token, arguments.ca_fingerprint, arguments.device_id)
    print(f"device {identity.device_id} is enrolled; its certificate is good until {utc(identity.not_after)}")
    print(f"start it with: bitfleet-client run --data DIR   (coordinator {identity.server})")
    return 0


def _leave(arguments: argparse.Namespace) -> int:
    from edge_client.enrolment import leave

    state = state_of(arguments)
    with state.lock():
        if not arguments.offline and state.identity.read() is not None:
            try:
                leave(state)
            except BitfleetError as error:
                print(f"bitfleet: nothing was removed; --offline removes without telling: {error}", file=sys.stderr)
                return error.exit_code
        state.identity.forget()
        state.peers.forget_all()
        if arguments.purge:
            state.purge()
    print("all that bitfleet kept here is removed" if arguments.purge else "key and certificate are removed")
    return 0


def _token(arguments: argparse.Namespace) -> str:
    if arguments.token is not None:
        return str(arguments.token)
    if arguments.token_file == "-":
        return sys.stdin.readline().strip()
    if arguments.token_file is not None:
        return Path(arguments.token_file).read_text().strip()
    return os.environ.get(TOKEN_VARIABLE) or (getpass.getpass("token: ").strip() if sys.stdin.isatty() else "")

"""Entry point of ``bitfleet-client``: picks the subcommand and turns errors into exit codes.

Exit codes: 0 done, 1 a check failed, 2 usage, 3 configuration, 130 interrupted; others as ``bnncore.errors`` has them.
A subcommand imports NumPy, gRPC or cryptography when it runs, so the rest answers at once.
"""

from __future__ import annotations

import argparse
import sys

from bnncore.errors import BitfleetError, ConfigurationError
from bnncore.version import add_version
from edge_client.commands import doctor, enrolment, outbox, peers, policy, predict, run, status, trial, unit

__all__ = ["build_parser", "main"]

_DESCRIPTION = "Run the agent, and let the device's owner see what it did and what left."
_EPILOG = "Every flag of `run` may be given as a variable: BITFLEET_CLIENT_SERVER, BITFLEET_CLIENT_DATA, ..."


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        return int(arguments.act(arguments))
    except BitfleetError as error:
        print(f"bitfleet: error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"bitfleet: error: {error}", file=sys.stderr)
        return ConfigurationError.exit_code
    except KeyboardInterrupt:
        return 130


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands; each leaves what does it in ``act``."""
    parser = argparse.ArgumentParser(prog="bitfleet-client", description=_DESCRIPTION, epilog=_EPILOG)
    add_version(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (run, doctor, trial, predict, status, outbox, peers, policy, enrolment, unit):
        command.add_parsers(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Entry point of the command ``bitfleet``: picks the subcommand and turns errors into exit codes.

Exit codes: 0 done, 2 usage, 3 configuration, 5 incompatible model, 130 interrupted. A subcommand imports NumPy and the
engine when it runs, so ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys

from bnncore.cli import bench, evaluate, export, info, memory, train
from bnncore.errors import BitfleetError
from bnncore.version import add_version

__all__ = ["build_parser", "main"]

_EPILOG = """\
examples:
  bitfleet train --dataset digits --epochs 20            train on the digits that ship with scikit-learn
  bitfleet train --dataset mnist --data DIR --epochs 5   train on MNIST
  bitfleet export model.safetensors --format onnx        for onnxruntime and others
  bitfleet memory --batch-size 100                       what training takes, beside the standard algorithm
  bitfleet bench --model cnv --against torch             how long a step takes, beside PyTorch's
  bitfleet info                                          what this machine can run

bitfleet COMMAND --help explains a command. bitfleet-client joins a fleet, bitfleet-server runs one.
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="bitfleet",
        description="Train binary neural networks in a few megabytes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_version(parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (train, evaluate, export, memory, bench, info):
        command.add_parser(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
      argv: arguments without the program's name; None: those of the process.

    Returns:
      The exit code.
    """
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed help or the mistake
        return int(stop.code or 0)
    try:
        args.run(args)
        sys.stdout.flush()
    except BitfleetError as error:
        print(f"bitfleet: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("bitfleet: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0

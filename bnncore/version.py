"""The option ``--version`` of the commands: what is installed is looked up when that is asked, not at each start."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import bnncore

__all__ = ["add_version"]


def add_version(parser: argparse.ArgumentParser) -> None:
    """Let a command tell its version and end."""
    parser.add_argument("--version", action=_Tell, nargs=0, help="tell the version and end")


class _Tell(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        print(f"bitfleet {bnncore.__version__}")
        parser.exit()

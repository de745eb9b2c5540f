"""The command ``bitfleet-server``."""

from server.cli.main import main

__all__ = ["main"]

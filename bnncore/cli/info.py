"""``bitfleet info``: what this machine can run and where things are kept."""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path
from typing import Any

from bnncore.cli.options import add_json_option
from bnncore.cli.output import check_destination, format_bytes, rss_peak_bytes, say, write_json

__all__ = ["add_parser"]

_EPILOG = """\
environment:
  BITFLEET_ISA     instruction set to use instead of the fastest one, e.g. portable
  BITFLEET_DATA    data folder when --data is not given
  BITFLEET_CACHE   folder for inflated data sets (default: ~/.cache/bitfleet)
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand to the command line."""
    parser = commands.add_parser(
        "info",
        help="what this machine can run",
        description="Say what this machine can run, which versions are installed and where data are kept.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Run the subcommand."""
    check_destination(args.json, "--json")
    import numpy as np

    import bnncore
    from bnncore.data import DATASETS
    from bnncore.data.cache import cache_folder
    from bnncore.engine import isa_available, isa_selected
    from bnncore.optimizer import OPTIMIZERS, PRESETS
    from bnncore.processors import usable_processors
    from bnncore.zoo import ZOO

    folder = cache_folder()
    result: dict[str, Any] = {
        "bitfleet": bnncore.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "isa_available": isa_available(),
        "isa": isa_selected(),
        "threads": len(os.sched_getaffinity(0)),
        "processors": usable_processors(),
        "models": sorted(ZOO),
        "datasets": sorted(DATASETS),
        "presets": sorted(PRESETS),
        "optimizers": sorted(OPTIMIZERS),
        "data": os.environ.get("BITFLEET_DATA"),
        "cache": str(folder),
        "cache_bytes": _folder_bytes(folder),
        "rss_peak_bytes": rss_peak_bytes(),
    }
    say(_summary(result), args.json)
    write_json(result, args.json)


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _summary(result: dict[str, Any]) -> str:
    others = [isa for isa in result["isa_available"] if isa != result["isa"]]
    return "\n".join(
        [
            f"bitfleet         {result['bitfleet']} (Python {result['python']}, NumPy {result['numpy']})",
            f"machine          {result['machine']}, {result['processors']:g} processor(s) usable",
            f"instruction set  {result['isa']} (also: {', '.join(others) or 'none'})",
            f"models           {', '.join(result['models'])}",
            f"data sets        {', '.join(result['datasets'])}",
            f"optimizers       {', '.join(result['optimizers'])}",
            f"data folder      {result['data'] or 'not set (BITFLEET_DATA)'}",
            f"cache            {result['cache']} ({format_bytes(result['cache_bytes'])})",
            f"this process     {format_bytes(result['rss_peak_bytes'])} peak resident",
        ]
    )

"""``bitfleet bench``: how long a training step takes, beside another way to train the same network."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bnncore.cli.options import (
    add_json_option,
    add_model_options,
    add_preset_options,
    build_model,
    positive_int,
)
from bnncore.cli.output import check_destination, say, warn_about_threads, write_json
from bnncore.errors import ConfigurationError

__all__ = ["add_parser"]

_AGAINST = ("torch", "standard", "paper")

_EPILOG = """\
examples:
  bitfleet bench                                     a step of the default network, alone
  bitfleet bench --model cnv --against torch         beside PyTorch (pip install 'bitfleet[torch]'), at its best here
  bitfleet bench --model cnv --against standard      beside Algorithm 1 in float32 in this engine; or paper
  bitfleet bench --model binarynet --against torch --json bench.json --plot bench.png
  bitfleet bench --pi                                what a step would take on Raspberry Pis: modelled, not measured

how it measures:
  Both sides train the same network on the same samples, each in a process of its own. Blocks of steps alternate; the
  speed-up is the median of the ratios of neighbouring blocks. A step includes forward, backward and the optimizer, not
  the loading of data. PyTorch trains the standard algorithm in float32 with Adam, in the fastest of its ways on this
  machine, which a short trial finds first (eager, fused Adam, channels_last, torch.compile).
  Memory is what a process held at its peak above what it held before the network was built.
  Let nothing else run meanwhile: alternating makes the ratio fair, not the milliseconds quiet.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand to the command line."""
    parser = commands.add_parser(
        "bench",
        help="how long a training step takes, beside PyTorch's",
        description="Time a training step on this machine, phase by phase, alone or beside another way to train.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_options(parser)
    add_preset_options(parser)
    parser.add_argument(
        "--batch-size", type=positive_int, default=100, metavar="N", help="samples a step (default: 100)"
    )
    parser.add_argument(
        "--against",
        choices=_AGAINST,
        help="what to compare with: torch, or this engine under another preset",
    )
    parser.add_argument(
        "--rounds",
        type=positive_int,
        metavar="N",
        help="blocks of steps for each side (default: ten seconds of them, at least 9)",
    )
    parser.add_argument(
        "--steps", type=positive_int, metavar="N", help="steps a block (default: a tenth of a second of them)"
    )
    parser.add_argument(
        "--plot",
        metavar="FILE.png",
        help="draw step times and a roofline; .svg and .pdf work too (needs: pip install 'bitfleet[plot]')",
    )
    parser.add_argument(
        "--pi",
        action="store_true",
        help="say what a step would take on Raspberry Pi 3B+, 4 and 5 instead, from counted work and published rates",
    )
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Run the subcommand."""
    check_destination(args.json, "--json")
    check_destination(args.plot, "--plot")
    if args.plot and args.json and Path(args.plot).resolve() == Path(args.json).resolve():
        raise ConfigurationError(f"--plot and --json are the same file, {args.plot}. Choose another for one of them")
    if args.pi:
        _model_boards(args)
    else:
        _measure(args)


def _model_boards(args: argparse.Namespace) -> None:
    from bnncore.bench.boards import model_boards
    from bnncore.bench.report import boards_table
    from bnncore.optimizer import resolve_preset
    from bnncore.plan import check_keeping

    for option, given in (("--against", args.against), ("--plot", args.plot)):
        if given is not None:
            raise ConfigurationError(f"{option} measures, --pi only models. Leave one of them out")
    preset = resolve_preset(args.preset, args.optimizer)
    if preset.name != "bitfleet":
        raise ConfigurationError(f"--pi models the preset bitfleet, got {preset.name!r}. Leave --preset out")
    spec = build_model(args)
    check_keeping(spec, preset, args.keep_products)
    result = model_boards(spec, args.batch_size, preset, keep_products=args.keep_products)
    say(boards_table(result), args.json)
    write_json(result, args.json)


def _measure(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from bnncore.bench.compare import Settings, compare
    from bnncore.bench.plot import plot_bench
    from bnncore.bench.report import bench_table
    from bnncore.drawing import check_picture
    from bnncore.optimizer import resolve_preset
    from bnncore.plan import plan_memory

    preset = resolve_preset(args.preset, args.optimizer)
    spec = build_model(args)
    warn_about_threads(args.threads)
    settings = Settings(
        spec,
        preset,
        args.batch_size,
        args.threads,
        args.against,
        rounds=args.rounds,
        steps=args.steps,
        keep_products=args.keep_products,
    )
    plan_memory(  # refuses what does not fit
        spec, batch_size=args.batch_size, preset=preset, threads=args.threads, keep_products=args.keep_products
    )
    if args.plot:
        check_picture(args.plot)
    with tqdm(unit="round", leave=False, disable=not sys.stderr.isatty()) as bar:

        def on_progress(doing: str, done: int, total: int) -> None:
            bar.total = total or None
            bar.set_description_str(doing, refresh=False)
            bar.update(done - bar.n)
            bar.refresh()

        result = compare(settings, on_progress)
    if args.plot:
        plot_bench(result, args.plot)
    say(bench_table(result), args.json)
    if args.plot:
        say(f"drawn to {args.plot}", args.json)
    write_json(result, args.json)

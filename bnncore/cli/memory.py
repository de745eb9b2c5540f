"""``bitfleet memory``: what training takes, before it starts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnncore.cli.options import (
    add_json_option,
    add_model_options,
    add_preset_options,
    build_model,
    parse_bytes,
    parse_sizes,
    positive_int,
)
from bnncore.cli.output import check_destination, format_bytes, say, write_json
from bnncore.errors import BudgetError, ConfigurationError, SpecError

if TYPE_CHECKING:
    from bnncore.optimizer import Preset
    from bnncore.spec import ModelSpec

__all__ = ["add_parser"]

DEFAULT_BATCH_SIZE = 100

_EPILOG = """\
examples:
  bitfleet memory --batch-size 100                   the default network, beside the standard algorithm
  bitfleet memory --budget 600KiB --optimizer latent8
                                                     the largest batch that fits in 600 KiB
  bitfleet memory --model binarynet --budget 64MiB   the largest batch of the paper's largest small network
  bitfleet memory --model cnv --plot cnv.png         the same as a picture
  bitfleet memory --widths 1024,1024 --input-shape 32,32,3 --json -

columns, all by the paper's formulas:
  standard   Algorithm 1 (Courbariaux and Bengio): float32 throughout, Adam
  same opt.  the same with the numbers that the chosen optimizer keeps for each weight
  paper      Algorithm 2 of arXiv 2102.04270 as published: bits and float16, Adam
Below them stands what the engine of the chosen preset really trains in: its one block of memory, at the moment when it
is fullest. --preset standard and --preset paper show what it takes for those two.
"""
_VARIABLES = {
    "X": "activations X",
    "dX_Y": "dX, Y",
    "dY": "dY",
    "mu_psi": "mu, psi",
    "W": "weights W",
    "dW": "dW",
    "beta_dbeta": "beta, dbeta",
    "momenta": "momenta",
    "pool_masks": "pool masks",
}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand to the command line."""
    parser = commands.add_parser(
        "memory",
        help="what training takes, beside the standard algorithm",
        description="Say what memory training takes, variable by variable, without training.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_options(parser)
    parser.add_argument(
        "--input-shape",
        type=parse_sizes,
        metavar="N,N,...",
        help="shape of one sample: height, width, channels (default: the model's usual one; mlp 28,28, sensor1d 128,6, "
        "resnete18 and bireal18 224,224,3, the others 32,32,3)",
    )
    parser.add_argument(
        "--classes",
        type=positive_int,
        metavar="N",
        help="classes (default: 10; sensor1d 6, resnete18 and bireal18 1000)",
    )
    add_preset_options(parser)
    parser.add_argument(
        "--batch-size",
        type=positive_int,
        metavar="N",
        help=f"samples a step (default: {DEFAULT_BATCH_SIZE}, or the most that fit in --budget)",
    )
    parser.add_argument(
        "--plot",
        metavar="FILE.png",
        help="draw it as bars; .svg and .pdf work too (needs: pip install 'bitfleet[plot]')",
    )
    parser.add_argument("--budget", type=parse_bytes, metavar="SIZE", help="memory that training may take, e.g. 64MiB")
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Run the subcommand."""
    check_destination(args.json, "--json")
    check_destination(args.plot, "--plot")
    if args.plot and args.json and Path(args.plot).resolve() == Path(args.json).resolve():
        raise ConfigurationError(f"--plot and --json are the same file, {args.plot}. Choose another for one of them")
    if args.model.endswith(".json") and (args.input_shape is not None or args.classes is not None):
        raise SpecError("--input-shape and --classes belong to a network of the zoo; a spec file says its own")
    from bnncore.memory import compare_memory
    from bnncore.memory_plot import plot_memory
    from bnncore.optimizer import resolve_preset

    preset = resolve_preset(args.preset, args.optimizer)
    spec = build_model(args, input_shape=args.input_shape, classes=args.classes)
    batch_size = _batch_size(args, spec, preset)
    result = compare_memory(
        spec, batch_size=batch_size, preset=preset, threads=args.threads, keep_products=args.keep_products
    )
    if args.budget is not None:
        result["budget_bytes"] = args.budget
    if args.plot:
        plot_memory(result, args.plot)
    say(_table(result, _outline(spec)), args.json)
    if args.plot:
        say(f"drawn to {args.plot}", args.json)
    write_json(result, args.json)


def _batch_size(args: argparse.Namespace, spec: ModelSpec, preset: Preset) -> int:
    """Take --batch-size, the largest that fits in --budget, or check the one against the other."""
    from bnncore.memory import largest_batch_size

    if args.budget is None:
        return args.batch_size or DEFAULT_BATCH_SIZE
    largest = largest_batch_size(
        spec, budget_bytes=args.budget, preset=preset, threads=args.threads, keep_products=args.keep_products
    )
    if args.batch_size is not None and args.batch_size > largest:
        raise BudgetError(
            f"a batch of {args.batch_size} does not fit in {format_bytes(args.budget)}; the largest that does is "
            f"{largest}. "
            f"Give --batch-size {largest} or less"
        )
    return args.batch_size or largest


def _outline(spec: ModelSpec) -> str:
    """Sizes in a line: 784-256-10, or 32x32x3-64c3-64c3p2-10; c3 is a 3 x 3 convolution, p2 a 2 x 2 pool, x4 four."""

    def square(letter: str, height: int, width: int) -> str:
        return f"{letter}{height}" if height == width else f"{letter}{height}x{width}"

    if spec.residual is not None:
        stem, head = spec.residual.stem.conv, spec.residual.head.dense
        parts = ["x".join(map(str, spec.input_shape)), f"{stem.out_channels}c{stem.kernel_height}"]
        for convs in spec.residual.stages:
            if convs:
                conv = convs[-1].conv
                parts.append(f"{conv.out_channels}{square('c', conv.kernel_height, conv.kernel_width)}x{len(convs)}")
        return "-".join([*parts, str(head.out_features)])
    first = spec.blocks[0]
    parts = ["x".join(map(str, spec.input_shape)) if first.is_conv else str(spec.input_features)]
    for block in spec.blocks:
        text = str(block.out_channels)
        if block.is_conv:
            text += square("c", block.kernel_height, block.kernel_width)
        if block.pool != "none":
            text += square("p", block.pool_height, block.pool_width)
        parts.append(text)
    return "-".join(parts)


def _table(result: dict[str, Any], widths: str) -> str:
    from bnncore.memory import describe_ratio

    columns = ["standard", "standard_same_optimizer", "paper"]
    heading = (
        f"{result['model']} {widths}, batch {result['batch_size']}, preset {result['preset']} "
        f"({result['optimizer']}), {result['threads']} thread(s)"
        + (", products kept" if result["keep_products"] else "")
    )
    lines = [heading, "", f"{'variable':<16}{'standard':>12}{'same opt.':>12}{'paper':>12}"]
    for key, title in _VARIABLES.items():
        sizes = [result[column]["variables"][key] for column in columns]
        if any(sizes):
            lines.append(f"{title:<16}" + "".join(f"{format_bytes(size):>12}" for size in sizes))
    totals = [result[column]["total_bytes"] for column in columns]
    lines.append(f"{'total':<16}" + "".join(f"{format_bytes(total):>12}" for total in totals))
    lines.append(f"{'standard / this':<16}" + "".join(f"{totals[0] / total:>12.2f}" for total in totals))
    if (published := result["paper"]["ratio_as_published"]) != result["paper"]["ratio"]:
        most, least = (format_bytes(total) for total in result["paper"]["totals_as_published"])
        lines.append(
            f"(as its authors count: {published:.2f} = {most} / {least}, with pool masks in the standard column alone)"
        )
    if result["bitfleet"] is None:
        return "\n".join([*lines, "", f"{result['preset']}: no plan, since {result['not_planned']}"])
    lines += ["", f"{result['preset']}, as planned"]
    for role, size in result["bitfleet"]["variables"].items():
        lines.append(f"  {role:<14}{format_bytes(size):>12}")
    total = format_bytes(result["bitfleet"]["total_bytes"])
    lines += [f"{'total':<16}{total:>12}", "", f"{describe_ratio(result['ratio'])} than the standard algorithm"]
    if "budget_bytes" in result:
        lines.append(f"fits in the budget of {format_bytes(result['budget_bytes'])}")
    return "\n".join(lines)

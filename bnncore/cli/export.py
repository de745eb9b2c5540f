"""``bitfleet export``: a saved network for other programs."""

from __future__ import annotations

import argparse
from pathlib import Path

from bnncore.cli.options import add_json_option
from bnncore.cli.output import check_destination, say, write_json

__all__ = ["add_parser"]

_EPILOG = """\
examples:
  bitfleet export digits.safetensors --format onnx                     digits.onnx, for onnxruntime and others
  bitfleet export digits.safetensors --format packed --output d.bfpk   a bit a weight, for a small runtime
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand to the command line."""
    parser = commands.add_parser(
        "export",
        help="write a saved network for other programs",
        description="Write a saved network as ONNX, or packed in a bit a weight. Both predict as the engine does.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a file that bitfleet saved")
    parser.add_argument("--format", choices=("onnx", "packed"), required=True, help="what to write")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to (default: beside the checkpoint)")
    parser.add_argument("--classes", metavar="A,B,...", help="names of the classes, to keep in the file")
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Run the subcommand."""
    check_destination(args.json, "--json")
    from bnncore.checkpoint import load_checkpoint
    from bnncore.errors import CheckpointError, ConfigurationError
    from bnncore.export import SUFFIXES, export_model
    from bnncore.state import has_statistics

    checkpoint = load_checkpoint(args.checkpoint)
    spec = checkpoint.spec
    if not has_statistics(spec, checkpoint.state):
        raise CheckpointError(
            f"{args.checkpoint} has no running statistics, without which nothing can be predicted: it is a model as "
            "devices receive it. Export the model from the coordinator"
        )
    classes = args.classes.split(",") if args.classes else []
    if classes and len(classes) != spec.classes:
        raise ConfigurationError(f"--classes must name {spec.classes} classes, got {len(classes)}")
    output = args.output or args.checkpoint.with_suffix(SUFFIXES[args.format])
    num_bytes = export_model(output, args.format, spec, checkpoint.state, classes=classes)
    say(f"wrote {output} ({num_bytes} bytes)", args.json)
    result = {"path": str(output), "format": args.format, "bytes": num_bytes, "model": spec.name}
    write_json({**result, "weights_digest": checkpoint.weights_digest}, args.json)

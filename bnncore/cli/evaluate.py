"""``bitfleet evaluate``: measure a saved network on the test split of a data set."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bnncore.cli.options import add_data_options, add_json_option, positive_int
from bnncore.cli.output import check_destination, rss_peak_bytes, say, testing_bar, warn_about_threads, write_json

__all__ = ["add_parser"]

_EPILOG = """\
examples:
  bitfleet train --dataset digits --epochs 20 --save digits.safetensors
  bitfleet evaluate digits.safetensors --dataset digits
  bitfleet evaluate model.safetensors --dataset mnist --data DIR --json -
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand to the command line."""
    parser = commands.add_parser(
        "evaluate",
        help="measure a saved network",
        description="Measure a saved network on the test split of a data set.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a file that bitfleet saved")
    add_data_options(parser)
    parser.add_argument(
        "--batch-size", type=positive_int, default=100, metavar="N", help="samples at once (default: 100)"
    )
    parser.add_argument("--threads", type=positive_int, default=1, metavar="N", help="threads (default: 1)")
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Run the subcommand."""
    check_destination(args.json, "--json")
    from bnncore.checkpoint import load_checkpoint
    from bnncore.cli.datasets import open_split, range_of
    from bnncore.engine import isa_selected
    from bnncore.errors import CheckpointError
    from bnncore.predictor import Predictor
    from bnncore.state import has_statistics
    from bnncore.training import evaluate

    checkpoint = load_checkpoint(args.checkpoint)
    spec, state = checkpoint.spec, checkpoint.state
    if not has_statistics(spec, state):
        raise CheckpointError(
            f"{args.checkpoint} has no running statistics, which evaluation needs: it is a model as devices receive "
            "it. Train it for some steps first, or export the model from the coordinator"
        )
    with open_split(args, "test", range_of(checkpoint.extra)) as dataset:
        warn_about_threads(args.threads)
        predictor = Predictor(spec, state, batch_size=args.batch_size, threads=args.threads)
        with testing_bar() as on_batch:
            measured = evaluate(predictor, dataset, on_batch=on_batch)
        name = dataset.name
    result: dict[str, Any] = {
        "accuracy": measured.accuracy,
        "loss": measured.loss,
        "count": measured.count,
        "model": spec.name,
        "dataset": name,
        "plan_peak_bytes": predictor.plan.peak_bytes,
        "isa": isa_selected(),
        "rss_peak_bytes": rss_peak_bytes(),
        "weights_digest": checkpoint.weights_digest,
    }
    say(
        f"{spec.name} on {measured.count} test samples of {name}: "
        f"accuracy {measured.accuracy:.2f} %, loss {measured.loss:.4f} nats",
        args.json,
    )
    write_json(result, args.json)

"""Options that several subcommands share, and how their texts become values."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from bnncore.errors import DataError, SpecError

if TYPE_CHECKING:
    from bnncore.data.augment import Augmentation
    from bnncore.spec import ModelSpec

__all__ = [
    "add_data_options",
    "add_json_option",
    "add_model_options",
    "add_preset_options",
    "build_model",
    "parse_augmentation",
    "parse_bytes",
    "parse_sizes",
    "positive_int",
    "unsigned_int",
]

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_UNITS |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


def positive_int(text: str) -> int:
    """Read an integer of at least 1 (for argparse)."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def unsigned_int(text: str) -> int:
    """Read an integer in [0, 2**63) (for argparse)."""
    value = int(text)
    if not 0 <= value < 1 << 63:
        raise argparse.ArgumentTypeError(f"must be in [0, 2**63), got {value}")
    return value


def parse_bytes(text: str) -> int:
    """Read an amount of memory: 500000, 64MiB, 1.5g (for argparse)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise argparse.ArgumentTypeError(f"must be an amount such as 64MiB or 500000, got {text!r}")
    return int(float(match[1]) * _UNITS[match[2]])


def parse_sizes(text: str) -> tuple[int, ...]:
    """Read comma-separated positive integers; an empty text is none."""
    return tuple(positive_int(part) for part in text.split(",")) if text else ()


def parse_augmentation(text: str) -> Augmentation:
    """Read shift=N,flip (for argparse)."""
    from bnncore.data.augment import Augmentation

    try:
        return Augmentation.parse(text)
    except DataError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add --model and --widths."""
    parser.add_argument(
        "--model",
        default="mlp",
        metavar="NAME|FILE",
        help="a network of the zoo (mlp), or a model spec in a .json file (default: mlp)",
    )
    parser.add_argument(
        "--widths",
        type=parse_sizes,
        metavar="N,N,...",
        help="features of each hidden layer of the mlp (default: 256,256,256,256)",
    )


def build_model(args: argparse.Namespace, *, input_shape: tuple[int, ...], classes: int) -> ModelSpec:
    """Build the network that --model and --widths describe; the shape and the classes are for one of the zoo.

    Raises:
      SpecError: the name is unknown, the file cannot be read or is no spec, or --widths was given with a file.
    """
    from bnncore.spec import ModelSpec
    from bnncore.zoo import build

    if args.model.endswith(".json"):
        if args.widths is not None:
            raise SpecError("--widths belongs to a network of the zoo; a spec file says its own widths. Leave it out")
        try:
            text = Path(args.model).read_bytes()
        except OSError as error:
            raise SpecError(f"the model spec cannot be read: {error}. Check --model") from error
        try:
            return ModelSpec.from_json(text)
        except SpecError as error:
            raise SpecError(f"{args.model}: {error}") from error
    params = {} if args.widths is None else {"widths": args.widths}
    return build(args.model, input_shape=input_shape, classes=classes, **params)


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add --dataset, --data and --download."""
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        help="digits (ships with scikit-learn), mnist, cifar10, har, or idx (a folder of idx files); "
        "default: what --data holds",
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="the data folder (default: the environment variable BITFLEET_DATA)"
    )
    parser.add_argument(
        "--download", action="store_true", help="fetch the data set from its publisher into the data folder first"
    )


def add_preset_options(parser: argparse.ArgumentParser) -> None:
    """Add --preset, --optimizer and --threads."""
    parser.add_argument("--preset", default="bitfleet", metavar="NAME", help="numeric choices (default: bitfleet)")
    parser.add_argument(
        "--optimizer",
        metavar="NAME",
        help="latent8 (1 byte a weight), bop (1), latent8m (2) or adam (12); default: the preset's",
    )
    parser.add_argument(
        "--threads", type=positive_int, default=1, metavar="N", help="threads; they never change a result (default: 1)"
    )


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", metavar="PATH", help="write the result as JSON to PATH, or to standard output with -")

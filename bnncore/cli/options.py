"""Options that several subcommands share, and how their texts become values."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from bnncore.amounts import read_bytes
from bnncore.errors import DataError, SpecError

if TYPE_CHECKING:
    from bnncore.data.augment import Augmentation
    from bnncore.data.input_range import InputRange
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


def positive_int(text: str) -> int:
    """Read an integer of at least 1 (for argparse)."""
    value = _int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def unsigned_int(text: str) -> int:
    """Read an integer in [0, 2**63) (for argparse)."""
    value = _int(text)
    if not 0 <= value < 1 << 63:
        raise argparse.ArgumentTypeError(f"must be in [0, 2**63), got {value}")
    return value


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be an integer, got {text!r}") from error


def parse_bytes(text: str) -> int:
    """Read an amount of memory: 500000, 64MiB, 1.5g (for argparse)."""
    try:
        return read_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parse_sizes(text: str) -> tuple[int, ...]:
    """Read comma-separated positive integers; an empty text is none (for argparse)."""
    try:
        return tuple(positive_int(part) for part in text.split(",")) if text else ()
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"must be positive integers such as 64,128, got {text!r}") from error


def parse_augmentation(text: str) -> Augmentation:
    """Read shift=N,flip (for argparse)."""
    from bnncore.data.augment import Augmentation

    try:
        return Augmentation.parse(text)
    except DataError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add --model and the parameters of the zoo's networks."""
    parser.add_argument(
        "--model",
        default="mlp",
        metavar="NAME|FILE",
        help="a network of the zoo (mlp, cnv, binarynet, sensor1d, resnete18, bireal18), or a model spec in a .json "
        "file (default: mlp)",
    )
    parser.add_argument(
        "--widths",
        type=parse_sizes,
        metavar="N,N,...",
        help="mlp: features of each hidden layer; the others: channels of each stage of convolutions "
        "(default: mlp 256,256,256,256, cnv 64,128,256, binarynet 128,256,512, sensor1d 64,64,128, resnete18 and "
        "bireal18 64,128,256,512)",
    )
    parser.add_argument(
        "--dense-widths",
        type=parse_sizes,
        metavar="N,N,...",
        help="cnv, binarynet, sensor1d: features of each hidden dense layer, '' for none (default: cnv 512,512, "
        "binarynet 1024,1024, sensor1d 128)",
    )
    parser.add_argument(
        "--convs-per-stage",
        type=positive_int,
        metavar="N",
        help="cnv, binarynet: convolutions a stage (default: 2); resnete18, bireal18: residual units (default: 4)",
    )
    parser.add_argument(
        "--kernel", type=positive_int, metavar="N", help="sensor1d: readings under its kernel, odd (default: 9)"
    )


def build_model(
    args: argparse.Namespace, *, input_shape: tuple[int, ...] | None = None, classes: int | None = None
) -> ModelSpec:
    """Build the network that the options of ``add_model_options`` describe.

    Args:
      args: with those options.
      input_shape: of a network of the zoo; None: the one of its usual data set.
      classes: likewise.

    Raises:
      SpecError: the name is unknown, the file cannot be read or is no spec, or an option does not belong to the model.
    """
    from bnncore.spec import ModelSpec
    from bnncore.zoo import ZOO, build

    names = ("widths", "dense_widths", "convs_per_stage", "kernel")
    params = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.model.endswith(".json"):
        if params:
            raise SpecError(
                f"{_options(params)} belongs to a network of the zoo; a spec file says its own sizes. Leave it out"
            )
        try:
            text = Path(args.model).read_bytes()
        except OSError as error:
            raise SpecError(f"the model spec cannot be read: {error}. Check --model") from error
        try:
            return ModelSpec.from_json(text)
        except SpecError as error:
            raise SpecError(f"{args.model}: {error}") from error
    if args.model not in ZOO:
        known = ", ".join(ZOO)
        raise SpecError(f"--model must be one of {known}, or a model spec whose name ends in .json, got {args.model!r}")
    taken = inspect.signature(ZOO[args.model]).parameters
    if foreign := [name for name in params if name not in taken]:
        known = _options(name for name in names if name in taken)
        raise SpecError(
            f"{_options(foreign)} does not belong to model {args.model!r}, which takes {known}. Leave it out"
        )
    if input_shape is not None:
        params["input_shape"] = input_shape
    if classes is not None:
        params["classes"] = classes
    return build(args.model, **params)


def _options(names: Iterable[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add --dataset, --data and --download."""
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        help="digits (ships with scikit-learn), mnist, cifar10, har, images (train/<class>/*.png|jpg; "
        "needs Pillow), csv, npz or parquet (rows of numbers with a label; the last needs pyarrow), or idx (a folder "
        "of idx files); default: what --data holds",
    )
    parser.add_argument(
        "--image-shape",
        type=parse_sizes,
        metavar="H,W[,C]",
        help="images: height and width that pictures are brought to, and 3 channels, or 1 for grey (default: 32,32,3)",
    )
    parser.add_argument(
        "--input-range",
        type=_input_range,
        metavar="LOW,HIGH",
        help="csv, npz, parquet: the real numbers that become 0 and 255 of a network's 8-bit input (default: each "
        "column's smallest and largest in the training split, or the checkpoint's)",
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="the data folder (default: the environment variable BITFLEET_DATA)"
    )
    parser.add_argument(
        "--download", action="store_true", help="fetch the data set from its publisher into the data folder first"
    )


def _input_range(text: str) -> InputRange:
    from bnncore.data.input_range import InputRange  # brings NumPy, which the parser does without

    try:
        return InputRange.parse(text)
    except DataError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_preset_options(parser: argparse.ArgumentParser) -> None:
    """Add --preset, --optimizer, --threads and --keep-products."""
    parser.add_argument(
        "--preset",
        default="bitfleet",
        metavar="NAME",
        help="bitfleet, or what it is compared with: standard (Algorithm 1, float32), paper (Algorithm 2 of arXiv "
        "2102.04270, float16 and bits); default: bitfleet",
    )
    parser.add_argument(
        "--optimizer",
        metavar="NAME",
        help="latent8 (1 byte a weight), bop (1), latent8m (2), sgd (8) or adam (12); the presets standard and paper "
        "take adam and sgd; default: latent8, theirs adam",
    )
    parser.add_argument(
        "--threads",
        type=positive_int,
        default=1,
        metavar="N",
        help="threads; they never change a result, but each takes scratch memory (default: 1)",
    )
    parser.add_argument(
        "--keep-products",
        action="store_true",
        help="keep the products of dense layers for the backward pass in place of computing them again: the same "
        "results, faster for networks like mlp, for 2 to 4 bytes an output and sample",
    )


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", metavar="PATH", help="write the result as JSON to PATH, or to standard output with -")

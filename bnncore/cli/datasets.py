"""Opening the data set that --dataset, --data and --download describe."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

from bnncore.data import Dataset, InputRange, Split, open_dataset
from bnncore.data.tables import TABLE_KINDS
from bnncore.errors import DataError

__all__ = ["open_split", "range_of"]


def open_split(args: argparse.Namespace, split: Split, input_range: InputRange | None = None) -> Dataset:
    """Open one split, after fetching it when --download says so.

    Args:
      args: the options.
      split: which one.
      input_range: what real numbers become, where --input-range does not say and the data set does not know it: that
        of a plug-in does.

    Raises:
      DataError: the data set is not there, is damaged, or cannot be fetched.
    """
    if sys.stderr.isatty():  # somebody who waits wants to know for what
        logging.basicConfig(format="%(message)s", level=logging.INFO)
    if args.download:
        _download(args)
    if args.dataset is not None and args.dataset not in TABLE_KINDS:
        input_range = None
    return open_dataset(
        args.dataset, args.data, split=split, image_shape=args.image_shape, input_range=args.input_range or input_range
    )


def range_of(description: dict[str, Any]) -> InputRange | None:
    """Give what real numbers became, as a data set or a checkpoint says; None: there were none."""
    told = description.get("input_range")
    return None if told is None else InputRange.from_dict(told)


def _download(args: argparse.Namespace) -> None:
    from bnncore.data.download import DOWNLOADS

    if args.dataset not in DOWNLOADS:
        raise DataError(
            f"--download fetches --dataset {' or '.join(DOWNLOADS)}, got {args.dataset!r}. Leave --download out"
        )
    root = args.data or os.environ.get("BITFLEET_DATA")
    if not root:
        raise DataError("--download needs to know where to: give --data DIR or set BITFLEET_DATA")
    DOWNLOADS[args.dataset](Path(root))

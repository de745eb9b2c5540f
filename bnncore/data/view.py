"""A prepared split: which rows of a file its samples are, written once and read as a whole.

The rows may lie in a file that grows, since a view says which of them are its own, and none is ever written anew.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.data.dataset import Broken, Dataset, RowSource
from bnncore.durable import replace_file
from bnncore.errors import DataError

__all__ = ["View", "is_whole", "open_view", "tell_broken", "write_view"]

_log = logging.getLogger(__name__)

_HEAD = "view.json"  # written last


@dataclass(frozen=True)
class View:
    """What a view holds.

    Attributes:
      rows: the file of the samples.
      labels: uint8 [n].
      keys: what names each sample for good, uint64 [n].
      classes: in the order of the label numbers.
      input_shape: of one sample.
      order: row of each sample, uint32 [n]; None: sample i is row i.
      broken: what was left out.
      description: what the numbers mean.
    """

    rows: Path
    labels: NDArray[np.uint8]
    keys: NDArray[np.uint64]
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    order: NDArray[np.uint32] | None = None
    broken: Broken = field(default_factory=Broken)
    description: dict[str, Any] | None = None


def write_view(folder: Path, view: View) -> None:
    """Write a view; it is there as a whole or not at all.

    Args:
      folder: to be made. One of that name which is there goes first.
      view: its content; the rows are named, not copied.

    Raises:
      OSError: the folder cannot be written.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    arrays = {"labels": view.labels, "keys": view.keys, "order": view.order}
    for name, array in arrays.items():
        if array is not None:
            with replace_file(folder / name) as file:
                file.write(np.ascontiguousarray(array).data)
    head = {
        "rows": os.path.relpath(view.rows, folder),
        "classes": view.classes,
        "input_shape": view.input_shape,
        "broken": {"count": view.broken.count, "reasons": view.broken.reasons},
        "description": view.description or {},
    }
    with replace_file(folder / _HEAD) as file:
        file.write(json.dumps(head).encode())


def open_view(folder: Path, *, name: str) -> Dataset | None:
    """Open a view; None where there is none, or none that is whole: it is to be made anew then.

    Args:
      folder: as ``write_view`` had it.
      name: what the data set is called.
    """
    try:
        head = json.loads((folder / _HEAD).read_bytes())
        labels = np.fromfile(folder / "labels", np.uint8)
        keys = np.fromfile(folder / "keys", np.uint64)
        order = np.fromfile(folder / "order", np.uint32) if (folder / "order").exists() else None
        classes, input_shape = tuple(head["classes"]), tuple(head["input_shape"])
        row_bytes, rows = math.prod(input_shape), folder / head["rows"]
        source = RowSource(rows, 0, row_bytes, rows.stat().st_size // row_bytes)
        last_row = len(labels) - 1 if order is None else int(order.max())
        if not len(labels) == len(keys) == len(labels if order is None else order):
            raise ValueError("its files do not fit each other")
        if int(labels.max()) >= len(classes) or last_row >= source.count:
            raise ValueError("it names what is not there")
        return Dataset(
            name,
            source,
            labels,
            classes=classes,
            input_shape=input_shape,
            description=head["description"],
            order=order,
            keys=keys,
            broken=Broken(head["broken"]["count"], tuple(head["broken"]["reasons"])),
        )
    except FileNotFoundError:
        return None
    except (DataError, OSError, ValueError, KeyError) as error:
        _log.warning("the prepared data in %s are damaged and made anew: %s", folder, error)
        return None


def is_whole(folder: Path) -> bool:
    """Say whether a view is there as a whole: another process may have made it while this one waited for its turn."""
    dataset = open_view(folder, name="")
    if dataset is None:
        return False
    dataset.close()
    return True


def tell_broken(dataset: Dataset, samples: str) -> Dataset:
    """Warn of what a data set was left without, once a process; returns the data set.

    Args:
      dataset: it.
      samples: what they are: "pictures (train)".
    """
    broken = dataset.broken
    if broken.count:
        more = "" if broken.count == 1 else "; ..."
        _warn_once(
            f"{broken.count} of {broken.count + dataset.num_examples} {samples} are left out, as they cannot be read: "
            f"{broken.reasons[0]}{more}"
        )
    return dataset


@functools.cache
def _warn_once(text: str) -> None:
    _log.warning("%s", text)

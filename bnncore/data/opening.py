"""Opening a data set by name, as it is or in the form of a job, and describing it before there is one.

A new data set is one file beside this one with an ``open_<name>`` function and one row in ``DATASETS``.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bnncore.data.cifar10 import cifar10_files, open_cifar10
from bnncore.data.dataset import Dataset
from bnncore.data.digits import FILE_NAME as DIGITS_FILE
from bnncore.data.digits import open_digits
from bnncore.data.har import har_files, open_har
from bnncore.data.idx import Split, find_images, open_idx
from bnncore.data.image_folder import find_image_classes
from bnncore.data.images import DEFAULT_IMAGE_SHAPE, image_shape_of, open_images, survey_images
from bnncore.data.input_range import InputRange
from bnncore.data.mnist import mnist_folder, open_mnist
from bnncore.data.plugins import open_plugin, plugin_names
from bnncore.data.tables import TABLE_KINDS, has_tables, open_table, own_range, survey_table
from bnncore.errors import DataError

__all__ = ["DATASETS", "DataSurvey", "open_dataset", "open_for_job", "survey_data"]


@dataclass(frozen=True)
class DataSurvey:
    """What is told of a device's data: counts and names, never a sample.

    Attributes:
      name: the data set's.
      classes: class names.
      input_shape: of one sample; of pictures what they are brought to when nobody asks for another shape.
      num_examples: in the split.
      any_image_shape: whether they are pictures, which are brought to the shape that a job asks for.
      needs_input_range: whether they are real numbers, which a job's range turns into its input.
      own_range: what the real numbers of the training split lie in, channel by channel; None: they are none.
    """

    name: str
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    num_examples: int
    any_image_shape: bool = False
    needs_input_range: bool = False
    own_range: InputRange | None = None


def open_dataset(
    name: str | None,
    root: Path | None,
    *,
    split: Split,
    image_shape: tuple[int, ...] | None = None,
    input_range: InputRange | None = None,
) -> Dataset:
    """Open one split of a data set.

    Args:
      name: a key of ``DATASETS``, or of a plug-in; None: whatever is found in ``root``.
      root: the data folder; None: the environment variable BITFLEET_DATA (``digits`` does without).
      split: ``train`` or ``test``.
      image_shape: height, width and channels that the pictures of ``images`` are brought to; None: 32, 32, 3.
      input_range: what the real numbers of a table become; None: what the training split has.

    Raises:
      DataError: the name is unknown, no folder was given, or the files are missing or damaged; the message says what
        was looked for and what to do.
    """
    name, root = _find(name, root)
    if name == "images" and root is not None:
        return open_images(root, split=split, image_shape=image_shape or DEFAULT_IMAGE_SHAPE)
    if image_shape is not None:
        raise DataError(f"--image-shape belongs to data set 'images', got {name!r}. Leave it out")
    if name in TABLE_KINDS and root is not None:
        return open_table(name, root, split=split, input_range=input_range)
    if input_range is not None:
        raise DataError(f"--input-range belongs to data set {' or '.join(TABLE_KINDS)}, got {name!r}. Leave it out")
    return DATASETS[name](root, split) if name in DATASETS else open_plugin(name, root, split)


def open_for_job(
    name: str | None,
    root: Path | None,
    *,
    split: Split,
    input_shape: tuple[int, ...],
    input_range: InputRange | None = None,
) -> Dataset:
    """Open one split in the form that a network reads: pictures in its shape, real numbers by its range.

    Args:
      name: as in ``open_dataset``.
      root: as in ``open_dataset``.
      split: ``train`` or ``test``.
      input_shape: of the network.
      input_range: of the job; None: it reads 8-bit samples as they are.

    Returns:
      The data set. Its samples have ``input_shape`` wherever they can be brought to it; 8-bit samples that lie on the
      disk as they are keep their own.

    Raises:
      DataError: as ``open_dataset``, or the samples are no real numbers and a range is given.
    """
    name, root = _find(name, root)
    if name in TABLE_KINDS and root is not None:
        if input_range is None:
            raise DataError(f"data set {name!r} has real numbers, and nothing says by input_range what they become")
        return open_table(name, root, split=split, input_range=input_range, input_shape=input_shape)
    if input_range is not None:
        raise DataError(f"the network reads real numbers by a range, data set {name!r} has 8-bit samples")
    image_shape = image_shape_of(input_shape)
    if name != "images" or root is None or image_shape is None:
        return open_dataset(name, root, split=split)
    return open_images(root, split=split, image_shape=image_shape).shaped(input_shape)


def survey_data(name: str | None, root: Path | None, *, split: Split = "train") -> DataSurvey:
    """Describe one split without bringing it to any form: a folder of pictures is counted, not read.

    Args:
      name: as in ``open_dataset``.
      root: as in ``open_dataset``.
      split: ``train`` or ``test``.

    Raises:
      DataError: as ``open_dataset``.
    """
    name, root = _find(name, root)
    if name == "images" and root is not None:
        classes, num_examples = survey_images(root, split)
        return DataSurvey(name, classes, DEFAULT_IMAGE_SHAPE, num_examples, any_image_shape=True)
    if name in TABLE_KINDS and root is not None:
        table = survey_table(name, root)
        classes, shape = tuple(table.classes), tuple(table.input_shape)
        return DataSurvey(
            name, classes, shape, table.counts[split], needs_input_range=True, own_range=own_range(table, shape)
        )
    with open_dataset(name, root, split=split) as dataset:
        return DataSurvey(name, dataset.classes, dataset.input_shape, dataset.num_examples)


def _find(name: str | None, root: Path | None) -> tuple[str, Path | None]:
    """Settle the data set's name and its folder; None where it does without."""
    is_plugin = name is not None and name not in DATASETS
    if is_plugin and name not in (others := plugin_names()):
        raise DataError(f"data set must be one of {sorted([*DATASETS, *others])}, got {name!r}")
    if is_plugin and root is None:
        named = os.environ.get("BITFLEET_DATA")
        return str(name), Path(named) if named else None
    if root is None and name != "digits":
        root = _default_root(name)
    if root is None:
        return "digits", None
    if not root.is_dir():
        raise DataError(f"the data folder {root} does not exist (seen from {Path.cwd()}). Check --data")
    return name or _detect(root), root


def _default_root(name: str | None) -> Path:
    root = os.environ.get("BITFLEET_DATA")
    if not root:
        raise DataError(
            f"data set {name!r} needs a data folder: give --data DIR or set the environment variable BITFLEET_DATA"
            if name
            else "a data set is needed: give its name with --dataset, or its folder with --data"
        )
    return Path(root)


def _detect(root: Path) -> str:
    """Tell which data set lies in a folder: a split of either kind is enough."""
    splits: tuple[Split, ...] = ("train", "test")
    if any(find_images(root, split) for split in splits):
        return "idx"
    if any(mnist_folder(root, split) for split in splits):
        return "mnist"
    if any(_has(cifar10_files, root, split) for split in splits):
        return "cifar10"
    if any(_has(har_files, root, split) for split in splits):
        return "har"
    if (root / DIGITS_FILE).is_file():
        return "digits"
    for kind in TABLE_KINDS:  # before pictures: a table may have some beside it
        if has_tables(kind, root, named=True):
            return kind
    if any(_has(find_image_classes, root, split) for split in splits):
        return "images"
    for kind in TABLE_KINDS:
        if has_tables(kind, root):
            return kind
    raise DataError(
        f"no data set in {root}: looked for idx files (train-images-idx3-ubyte[.gz]) there, in mnist/ and in "
        f"MNIST/raw/, for cifar-10-batches-py/ there and in cifar10/, for UCI HAR Dataset/ there and in har/, "
        f"for {DIGITS_FILE}, for pictures in train/<class>/ or <class>/, and for *.csv, *.npz and *.parquet. "
        "Check --data, or name the data set with --dataset"
    )


def _has(find: Callable[[Path, Split], object], root: Path, split: Split) -> bool:
    try:
        find(root, split)
    except DataError:
        return False
    return True


def _with_root(opener: Callable[..., Dataset]) -> Callable[[Path | None, Split], Dataset]:
    return lambda root, split: opener(root, split=split)


DATASETS: dict[str, Callable[[Path | None, Split], Dataset]] = {
    "cifar10": _with_root(open_cifar10),
    "digits": _with_root(open_digits),
    "har": _with_root(open_har),
    "idx": _with_root(open_idx),
    "images": _with_root(open_images),
    "mnist": _with_root(open_mnist),
    **{kind: _with_root(functools.partial(open_table, kind)) for kind in TABLE_KINDS},
}
"""Openers by name."""

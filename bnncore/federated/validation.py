"""The part of a device's own data that it never trains on, and how a model does there.

A sample belongs to that part by what names it for good (``Dataset.keys``) and the device's name alone: so the part
stays what it was when samples are added, taken away or put in another order, is the same in every job of the same
fraction, and a smaller fraction's part lies within a larger one's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnncore.data import Dataset
from bnncore.seeds import derive_seed

__all__ = ["LocalScore", "held_out_rows", "parts_of"]


@dataclass(frozen=True)
class LocalScore:
    """How a model did on a device's validation part.

    Attributes:
      examples: in the part.
      correct: classified right.
      loss: mean cross-entropy, nats.
    """

    examples: int
    correct: int
    loss: float


def held_out_rows(keys: NDArray[np.uint64], fraction: float, device_id: str) -> NDArray[np.bool_]:
    """Say which samples are held out: bool [n], each with the chance ``fraction``.

    One never is, so that there is always something to train on: that which would be the last to be.

    Args:
      keys: what names each sample, uint64 [n].
      fraction: 0 to below 1.
      device_id: whose data they are.

    Source of the hash: splitmix64 (Steele, Lea and Flood, 2014), keyed by the device's name.
    """
    mixed = keys * np.uint64(0x9E3779B97F4A7C15) + np.uint64(derive_seed("validation", device_id))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    held_out: NDArray[np.bool_] = mixed < np.uint64(int(fraction * 2**64))
    held_out[np.argmax(mixed)] = False
    return held_out


@contextlib.contextmanager
def parts_of(dataset: Dataset, fraction: float, device_id: str) -> Iterator[tuple[Dataset, Dataset | None]]:
    """Split a device's data for the block.

    Args:
      dataset: all of it.
      fraction: to be held out, 0 to below 1.
      device_id: whose data they are.

    Yields:
      What to train on, in its order; and what is held out, None where that is nothing.
    """
    if fraction == 0 or not (held_out := held_out_rows(dataset.keys(), fraction, device_id)).any():
        yield dataset, None
        return
    with dataset.subset(np.flatnonzero(~held_out)) as training, dataset.subset(np.flatnonzero(held_out)) as validation:
        yield training, validation

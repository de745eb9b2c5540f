"""Splitting one data set over several devices, evenly or not, the same way for the same seed."""

from __future__ import annotations

import math
import random

import numpy as np
from numpy.typing import NDArray

from bnncore.errors import DataError

__all__ = ["dirichlet_shards", "shuffled"]


def shuffled(count: int, generator: random.Random) -> NDArray[np.uint32]:
    """Give 0 .. count-1 in an order drawn from the generator.

    Sorted by keys of ``Random.random``, the one stream that Python promises to keep over its versions.
    """
    keys = np.fromiter((generator.random() for _ in range(count)), np.float64, count)
    return np.argsort(keys, kind="stable").astype(np.uint32)


def dirichlet_shards(labels: NDArray[np.uint8], num_shards: int, alpha: float, seed: int) -> list[NDArray[np.uint32]]:
    """Split examples into shards whose class mixtures differ.

    For each class the shares of the shards are drawn from a Dirichlet distribution with all parameters alpha: 0.1
    gives most shards a few classes, 1 uneven mixtures, infinity equal mixtures and sizes. (Hsu et al., 2019,
    arXiv:1909.06335, draws over classes for each shard; drawing over shards for each class keeps all examples.)

    Args:
      labels: uint8 [n].
      num_shards: at most n.
      alpha: above 0, may be ``math.inf``.
      seed: any integer.

    Returns:
      For each shard its examples, ascending. Every example is in exactly one shard, and no shard is empty.

    Raises:
      DataError: there are more shards than examples, or alpha is not above 0.
    """
    if not 1 <= num_shards <= len(labels):
        raise DataError(f"the number of shards must be in [1, {len(labels)}] (the examples), got {num_shards}")
    if not alpha > 0:
        raise DataError(f"alpha must be above 0 (inf = all shards alike), got {alpha}")
    generator = random.Random(seed)
    order = shuffled(len(labels), generator)
    if math.isinf(alpha):
        return [np.sort(part) for part in np.array_split(order, num_shards)]
    parts: list[list[NDArray[np.uint32]]] = [[] for _ in range(num_shards)]
    for label in np.unique(labels):
        members = order[labels[order] == label]
        shares = _dirichlet(num_shards, alpha, generator)
        cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
        for part, piece in zip(parts, np.split(members, cuts), strict=True):
            part.append(piece)
    return _fill_empty([np.sort(np.concatenate(part)) for part in parts])


def _dirichlet(count: int, alpha: float, generator: random.Random) -> NDArray[np.float64]:
    draws = np.array([generator.gammavariate(alpha, 1.0) for _ in range(count)])
    if draws.sum() == 0:  # a tiny alpha underflows; its limit gives everything to one shard
        draws[generator.randrange(count)] = 1.0
    shares: NDArray[np.float64] = draws / draws.sum()
    return shares


def _fill_empty(shards: list[NDArray[np.uint32]]) -> list[NDArray[np.uint32]]:
    """Give each empty shard one example of the largest."""
    for position, shard in enumerate(shards):
        if not len(shard):
            largest = max(range(len(shards)), key=lambda i: len(shards[i]))
            shards[position], shards[largest] = shards[largest][-1:], shards[largest][:-1]
    return shards

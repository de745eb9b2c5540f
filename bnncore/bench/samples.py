"""Samples to train on when only time and memory are asked for: in a data set's shape, and learnable."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bnncore.spec import ModelSpec

__all__ = ["make_batches"]


def make_batches(
    spec: ModelSpec, *, batch_size: int, count: int, seed: int = 0
) -> list[tuple[NDArray[np.uint8], NDArray[np.int32]]]:
    """Make batches: every class has a picture of its own, every sample is one of them under as much noise.

    Args:
      spec: says shape and classes.
      batch_size: samples a batch.
      count: batches.
      seed: decides them.

    Returns:
      For each batch, samples uint8 [batch_size, input_features] and labels int32 [batch_size].

    Memory: the batches and little else: noise is drawn sample by sample.
    """
    generator = np.random.default_rng(seed)
    features = spec.input_features
    pictures = generator.integers(0, 128, (spec.classes, features), dtype=np.uint8)
    batches = []
    for _ in range(count):
        labels = generator.integers(0, spec.classes, batch_size, dtype=np.int32)
        samples = np.empty((batch_size, features), np.uint8)
        for row, label in zip(samples, labels, strict=True):
            np.add(pictures[label], generator.integers(0, 128, features, dtype=np.uint8), out=row)
        batches.append((samples, labels))
    return batches

"""Softmax and cross-entropy, in float64 (native/include/bnncore/softmax.h)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bnncore.reference.real_math import exp, log

__all__ = ["cross_entropy"]

_LARGEST_LOSS = 1000.0


def cross_entropy(logits: NDArray[np.float32], labels: NDArray[np.int32]) -> tuple[float, int, NDArray[np.float64]]:
    """Give the mean loss (nats), hits, and the gradient of a sample's loss, p - target [B, classes].

    Args:
      logits: float32 [B, classes].
      labels: int32 [B], each below the number of classes.
    """
    z = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    e = exp(z)
    total = np.zeros(len(z))
    for k in range(z.shape[1]):  # classes are added in order
        total = total + e[:, k]
    rows = np.arange(len(z))
    losses = np.minimum(log(total) - z[rows, labels], _LARGEST_LOSS)
    loss = np.floor(losses * 2.0**32).sum() / 2.0**32 / len(z)  # as integers, so that their order does not matter
    p = e * (1.0 / total)[:, None]
    p[rows, labels] -= 1.0
    return float(loss), int((logits.argmax(axis=1) == labels).sum()), p

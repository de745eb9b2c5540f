"""How well an attack did: likeness of images, re-identification, and ROC curves.

Letters: G = guesses, T = true images, N = candidates, P = pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["correlations", "re_identified", "roc", "structural_similarity"]

Floats = NDArray[np.float64]

_SIDE, _WINDOW = 28, 7


def correlations(a: Floats, b: Floats) -> Floats:
    """Pearson correlation of every image of ``a`` [G, P] with every one of ``b`` [T, P]: [G, T]."""
    unit_a, unit_b = (_unit(images - images.mean(1, keepdims=True)) for images in (a, b))
    return unit_a @ unit_b.T


def structural_similarity(a: Floats, b: Floats) -> float:
    """SSIM of two images in [0, 1], windows of 7 x 7 (Wang et al., 2004, IEEE TIP 13(4), eq. 13)."""
    x, y = (np.lib.stride_tricks.sliding_window_view(i.reshape(_SIDE, _SIDE), (_WINDOW, _WINDOW)) for i in (a, b))
    axes = (-1, -2)
    mean_x, mean_y = x.mean(axes), y.mean(axes)
    shared = (x * y).mean(axes) - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + 0.01**2) * (2 * shared + 0.03**2)
    largest = (mean_x**2 + mean_y**2 + 0.01**2) * (x.var(axes) + y.var(axes) + 0.03**2)
    return float((likeness / largest).mean())


def re_identified(guesses: Floats, true: Floats, others: Floats) -> NDArray[np.bool_]:
    """Say of each true image whether it, among itself and the others, is the one that is most like any guess.

    Args:
      guesses: [G, P].
      true: [T, P].
      others: candidates that no device had, [N, P].
    """
    best_other = correlations(guesses, others).max()
    found: NDArray[np.bool_] = correlations(guesses, true).max(0) > best_other
    return found


def roc(members: Floats, others: Floats) -> tuple[float, float]:
    """Give the area under the ROC curve, and the true positive rate at 1 % false positives.

    Args:
      members: scores of samples that were trained on.
      others: of samples that were not.
    """
    ordered = np.sort(others)
    below = np.searchsorted(ordered, members, side="left")
    upto = np.searchsorted(ordered, members, side="right")
    threshold = ordered[int(np.ceil(0.99 * len(ordered))) - 1]
    return float((below + upto).mean() / 2 / len(ordered)), float((members > threshold).mean())


def _unit(images: Floats) -> Floats:
    unit: Floats = images / (np.linalg.norm(images, axis=1, keepdims=True) + 1e-12)
    return unit

"""Update inversion: rebuild the images that a device trained on from what arrived.

The change of the first layer is a sum over the images, ``sum_b d_b x_b^T``, so its rows are mixtures of them: the leak
of a dense first layer, in closed form (Phong et al., 2018, IEEE TIFS 13(5)). Batch norm makes the d_b
sum to zero but for rounding, so the rows span differences of images. Steps:

1. *Background*: pixels at the border are the same in every image; what a row tells there is subtracted.
2. *Span*: the leading right singular vectors, as many as images. One bit a weight is enough: the sign of a mixture
   keeps the directions of its pixels (as in 1-bit matrix completion; Davenport et al., 2014).
3. *Unmixing*: an image is mostly background, a mixture less so, hence images are the sparsest vectors of the span,
   found by alternating directions from every pixel as a start (Qu, Sun and Wright, 2014, arXiv 1412.4659;
   the demixing of Kariyappa et al., 2023, arXiv 2209.05578, looks for independence instead).
4. *Statistics*: the mean of the first batch norm is the known weights times the mean image, in as many equations as
   the layer has outputs; with a Gaussian prior from public images it gives the mean image
   (256 equations for 784 pixels). It completes the span, restores the amplitudes that signs lose, and is all that there
   is for a device of one image, whose weights do not change at all.

Letters: O = outputs of the layer, P = pixels, B = images, G = guesses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.privacy_audit.views import Model, View

__all__ = ["MAX_GUESSES", "Prior", "invert", "mean_image"]

Floats = NDArray[np.float64]

MAX_GUESSES = 100
"""Images that the attacker proposes at most."""
_LAYER, _MEAN = "dense1.weight", "norm1.mean"
_ITERATIONS = 100
_SPARSITY = 0.7
"""Threshold of the alternating directions, in 1 / sqrt(P): between 0.5 and 1 little depends on it."""
_NEGATIVE = 3.0
"""What a negative pixel costs more than a positive one."""
_NEW = 0.4
"""Part of a guess that must lie outside the space of those before it."""
_NEGLIGIBLE = 1e-4
"""Singular values below this part of the largest are rounding."""


@dataclass(frozen=True)
class Prior:
    """What images of this kind look like: mean [P] and covariance [P, P] of public ones."""

    mean: Floats
    covariance: Floats

    @classmethod
    def of(cls, public: Floats) -> Prior:
        """Take it from images [n, P]."""
        return cls(public.mean(0), np.cov(public.T))


def invert(view: View, model: Model, prior: Prior) -> Floats:
    """Propose images: float64 [G, P] in [0, 1], the surest first; G <= ``MAX_GUESSES`` and the number of images."""
    mean = mean_image(view, model, prior)
    change = view.weights[_LAYER].astype(np.float64)
    if not change.any() or view.num_images == 1:
        return np.clip(mean, 0.0, 1.0)[None]
    change = change - change[:, _border()].mean(1, keepdims=True)
    _, strengths, directions = np.linalg.svd(change, full_matrices=False)
    rank = min(view.num_images, int((strengths > _NEGLIGIBLE * strengths[0]).sum()))
    span = directions[:rank]
    if rank < min(view.num_images, len(change)):
        rest = mean - span.T @ (span @ mean)
        span = np.vstack([span, rest / np.linalg.norm(rest)])
    guesses = np.maximum(_sparsest(span, min(view.num_images, MAX_GUESSES)), 0.0)
    if view.is_signs:
        guesses *= np.maximum(mean, 0.0)
    return np.clip(guesses / (np.quantile(guesses, 0.98, axis=1, keepdims=True) + 1e-9), 0.0, 1.0)


def mean_image(view: View, model: Model, prior: Prior) -> Floats:
    """Estimate the mean image [P] from batch norm's mean: the posterior of a Gaussian prior, given W x."""
    weights = np.where(model.state[_LAYER] >= 0, 1.0, -1.0)
    told = (view.statistics[_MEAN] / view.num_members + 255.0 * weights.sum(1)) / 510.0  # inputs are 510 x - 255
    covariance = prior.covariance / max(view.num_images, 1) + 1e-6 * np.eye(len(prior.mean))
    gain = np.linalg.solve(weights @ covariance @ weights.T + 1e-6 * np.eye(len(weights)), weights @ covariance).T
    estimate: Floats = prior.mean + gain @ (told - weights @ prior.mean)
    return estimate


def _border() -> NDArray[np.bool_]:
    inner = np.zeros((28, 28), bool)
    inner[1:-1, 1:-1] = True
    return ~inner.ravel()


def _sparsest(span: Floats, count: int) -> Floats:
    """Find the sparsest vectors of a space, each another one.

    Args:
      span: orthonormal rows [B, P].
      count: of vectors.

    Returns:
      At most ``count`` unit vectors [G, P], each with a positive sum, the sparsest and least negative first.
    """
    threshold = _SPARSITY / np.sqrt(span.shape[1])
    reach = np.linalg.norm(span, axis=0)
    starts = span[:, reach > 0.1 * reach.max()].T
    mixing = starts / np.linalg.norm(starts, axis=1, keepdims=True)
    for _ in range(_ITERATIONS):
        vectors = mixing @ span
        mixing = (np.sign(vectors) * np.maximum(np.abs(vectors) - threshold, 0.0)) @ span.T
        mixing /= np.linalg.norm(mixing, axis=1, keepdims=True) + 1e-12
    vectors = mixing @ span
    vectors *= np.where(vectors.sum(1, keepdims=True) < 0, -1.0, 1.0)
    cost = np.abs(vectors).sum(1) + _NEGATIVE * np.maximum(-vectors, 0.0).sum(1)
    chosen: list[int] = []
    basis = np.zeros((0, span.shape[1]))
    for candidate in np.argsort(cost):
        rest = vectors[candidate] - basis.T @ (basis @ vectors[candidate])
        if np.linalg.norm(rest) > _NEW:
            chosen.append(int(candidate))
            basis = np.vstack([basis, rest / np.linalg.norm(rest)])
        if len(chosen) == count:
            break
    found: Floats = vectors[chosen]
    return found

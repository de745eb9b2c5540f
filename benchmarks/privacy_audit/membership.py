"""Membership inference: was this image among those that were trained on?

Score: the cosine of what a layer's weights moved by and of the step that the image alone would have asked for (its
gradient at the model that training started from), added up over the hidden layers. How much any update is like an
image's gradient differs from image to image, so a score counts from the mean of those against updates without the
image: the offline likelihood ratio with one variance for all of Carlini et al. (2022, arXiv 2112.03570), with a cosine
in the place of their loss.

Letters: U = updates or sums, T = target images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.privacy_audit.scores import roc
from benchmarks.privacy_audit.views import Model, View

__all__ = ["alignments", "attack"]

Floats = NDArray[np.float64]

_HIDDEN = (1, 2, 3, 4)
_LAYERS = (*_HIDDEN, 5)


def attack(
    views: Sequence[View], model: Model, images: Floats, labels: NDArray[np.uint8], owner: NDArray[np.int64]
) -> tuple[float, float]:
    """Attack updates of which each has some of the targets.

    Args:
      views: what arrived, U of them, at least 3.
      model: that training started from.
      images: targets [T, 784] in [0, 1].
      labels: theirs.
      owner: [T]: the view that has the target.

    Returns:
      Area under the ROC curve; true positive rate at 1 % false positives.
    """
    scores = alignments(views, model, images, labels)
    targets = np.arange(len(images))
    has = owner[None] == np.arange(len(views))[:, None]
    without = np.where(has, 0.0, scores)
    # Each score is held against those of as many other views without the image, and never against itself.
    left_out = np.where(has, scores[(owner + 1) % len(views), targets], scores)
    scores = scores - (without.sum(0) - left_out) / (len(views) - 2)
    return roc(scores[has], scores[~has])


def alignments(views: Sequence[View], model: Model, images: Floats, labels: NDArray[np.uint8]) -> Floats:
    """Give the score [U, T] of every target against every view."""
    inputs, errors = _gradients(model, images, labels)
    scores = np.zeros((len(views), len(images)))
    for number, view in enumerate(views):
        for layer in _HIDDEN:
            change = view.weights[f"dense{layer}.weight"]
            along = ((errors[layer] @ change) * inputs[layer]).sum(1)
            sizes = np.linalg.norm(errors[layer], axis=1) * np.linalg.norm(inputs[layer], axis=1)
            scores[number] -= along / (sizes * np.linalg.norm(change) + 1e-12)
    return scores


def _gradients(model: Model, images: Floats, labels: NDArray[np.uint8]) -> tuple[dict[int, Floats], dict[int, Floats]]:
    """Give each layer's inputs, and the loss's derivatives by its products: a weight's gradient is their outer product.

    Batch norm takes the model's statistics; signs pass the gradient where their argument is within +-1.
    """
    state, signal = model.state, 510.0 * images - 255.0
    inputs: dict[int, Floats] = {}
    outputs: dict[int, Floats] = {}
    weights = {layer: np.where(state[f"dense{layer}.weight"] >= 0, 1.0, -1.0) for layer in _LAYERS}
    spread = {layer: np.maximum(state[f"norm{layer}.mean_abs_dev"], 1e-6) for layer in _LAYERS}
    for layer in _LAYERS:
        inputs[layer] = signal
        centred = signal @ weights[layer].T - state[f"norm{layer}.mean"]
        outputs[layer] = centred / spread[layer] + state[f"norm{layer}.beta"]
        signal = np.where(outputs[layer] >= 0, 1.0, -1.0)
    logits = outputs[_LAYERS[-1]]
    error = np.exp(logits - logits.max(1, keepdims=True))
    error /= error.sum(1, keepdims=True)
    error[np.arange(len(labels)), labels] -= 1.0
    errors: dict[int, Floats] = {}
    for layer in reversed(_LAYERS):
        errors[layer] = error / spread[layer]
        if layer > 1:
            error = (errors[layer] @ weights[layer]) * (np.abs(outputs[layer - 1]) <= 1.0)
    return inputs, errors

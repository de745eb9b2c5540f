"""Networks by name, so that a job file or a command can say ``mlp`` instead of listing layers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from bnncore.errors import SpecError
from bnncore.spec import BinaryDense, L1BatchNorm, Layer, ModelSpec, Sign, SoftmaxCrossEntropy

__all__ = ["ZOO", "build", "mlp"]


def mlp(
    input_shape: Sequence[int] = (28, 28), widths: Sequence[int] = (256, 256, 256, 256), classes: int = 10
) -> ModelSpec:
    """Describe a fully connected network; the defaults are the 784-256x4-10 network of arXiv 2102.04270.

    Args:
      input_shape: shape of one sample.
      widths: features of each hidden layer; may be empty.
      classes: classes told apart.

    Raises:
      SpecError: a width is not a positive integer.
    """
    sizes = [*widths, classes]
    layers: list[Layer] = []
    features = math.prod(input_shape)
    for number, size in enumerate(sizes, start=1):
        layers.append(BinaryDense(f"dense{number}", features, size))
        layers.append(L1BatchNorm(f"norm{number}", size))
        layers.append(SoftmaxCrossEntropy("loss", size) if number == len(sizes) else Sign(f"sign{number}"))
        features = size
    return ModelSpec("mlp", tuple(input_shape), tuple(layers))


ZOO: dict[str, Callable[..., ModelSpec]] = {"mlp": mlp}
"""Builders by name; their keyword arguments are the parameters of a job file."""


def build(name: str, **params: Any) -> ModelSpec:
    """Build a network of the zoo.

    Args:
      name: a key of ``ZOO``.
      params: the builder's keyword arguments, as they come out of JSON.

    Raises:
      SpecError: the name or a parameter is unknown, or a value is not valid.
    """
    builder = ZOO.get(name)
    if builder is None:
        raise SpecError(f"model must be one of {sorted(ZOO)}, got {name!r}")
    known = list(inspect.signature(builder).parameters)
    unknown = sorted(set(params) - set(known))
    if unknown:
        raise SpecError(f"model {name!r} takes the parameters {known}, got {unknown}")
    for key in ("input_shape", "widths"):
        value = params.get(key, [])
        if not isinstance(value, (list, tuple)) or not all(isinstance(size, int) for size in value):
            raise SpecError(f"{key} of model {name!r} must be a list of integers, got {value!r}")
    return builder(**params)

"""The networks of ``bnncore.zoo`` in PyTorch: ``bnncore.nn.zoo.binarynet()`` in place of ``bnncore.binarynet()``.

Each takes the arguments of the builder of its spec, gives what ``bnncore.nn.convert.network`` gives, and takes what
``bnncore.nn.convert.to_input`` gives.
"""

from __future__ import annotations

from typing import Any

from bnncore import zoo
from bnncore.nn.convert import network
from bnncore.nn.sequential import Sequential

__all__ = ["binarynet", "bireal18", "build", "cnv", "mlp", "resnete18", "sensor1d"]


def build(name: str, **params: Any) -> Sequential:
    """Build a network by name, with the parameters that ``bnncore.build`` takes.

    Raises:
      SpecError: the name or a parameter is unknown, or a value is not valid.
    """
    return network(zoo.build(name, **params))


def mlp(**params: Any) -> Sequential:
    """Build a fully connected network."""
    return build("mlp", **params)


def cnv(**params: Any) -> Sequential:
    """Build a VGG without padding, whose stages end in a pool of signs."""
    return build("cnv", **params)


def binarynet(**params: Any) -> Sequential:
    """Build a padded VGG, whose stages end in a pool in front of the norm."""
    return build("binarynet", **params)


def resnete18(**params: Any) -> Sequential:
    """Build ResNetE-18: a stream of real numbers to which binary convolutions add."""
    return build("resnete18", **params)


def bireal18(**params: Any) -> Sequential:
    """Build Bi-Real-18: ResNetE-18 whose signs have the gradient of ApproxSign."""
    return build("bireal18", **params)


def sensor1d(**params: Any) -> Sequential:
    """Build a network for windows of sensor readings."""
    return build("sensor1d", **params)

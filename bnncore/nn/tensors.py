"""The tensors of a residual network's state, and where they are in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bnncore.errors import ShapeError
from bnncore.nn import layers
from bnncore.nn.residual import Residual
from bnncore.spec import ModelSpec, TensorSpec

__all__ = ["Place", "places_of"]

_PARTS = {
    "weight": "weight",
    "bias": "bias",
    "beta": "bias",
    "mean": "running_mean",
    "mean_abs_dev": "running_mean_abs_dev",
}
"""Of a module, by those of a state."""


@dataclass(frozen=True)
class Place:
    """Where a tensor of a state is.

    Attributes:
      tensor: of the spec.
      module: that has it.
      is_first: it belongs to the first norm, whose statistics are in units of the input.
    """

    tensor: TensorSpec
    module: Any
    is_first: bool

    @property
    def values(self) -> Any:
        """The tensor in PyTorch, in the shape that a state has it in: a view."""
        _, part = self.tensor.name.rsplit(".", 1)
        found = getattr(self.module, _PARTS[part]).data
        return found.permute(0, 2, 3, 1) if found.dim() == 4 else found


def places_of(model: Any, spec: ModelSpec) -> list[Place]:
    """Find the tensors of a residual network's state, in order.

    Raises:
      ShapeError: the network is not one of this spec.
    """
    modules = list(_modules(model))
    names = list(dict.fromkeys(tensor.name.rsplit(".", 1)[0] for tensor in spec.tensors))
    if len(modules) != len(names):
        raise ShapeError(f"model {spec.name!r} has {len(names)} layers with parameters, the network has {len(modules)}")
    by_name = dict(zip(names, modules, strict=True))
    first = next((name for name, module in by_name.items() if isinstance(module, layers.L1BatchNorm2d)), None)
    found = []
    for tensor in spec.tensors:
        name, part = tensor.name.rsplit(".", 1)
        module = by_name[name]
        values = getattr(module, _PARTS[part], None)
        if not torch.is_tensor(values):
            raise ShapeError(f"{tensor.name} has no place in a {type(module).__name__}. Is the network another one?")
        place = Place(tensor, module, name == first)
        if tuple(place.values.shape) != tensor.shape:
            raise ShapeError(
                f"{tensor.name} must have shape {list(tensor.shape)}, got {list(place.values.shape)} in PyTorch (with "
                "channels last). Is the network of other widths?"
            )
        found.append(place)
    return found


def _modules(model: Any) -> Iterator[Any]:
    """Give the modules with parameters in the order of a spec: of a Residual its body comes first."""
    for module in model.children():
        if isinstance(module, (nn.Conv2d, nn.Linear, layers.BinaryConv2d, layers.BinaryLinear, layers.L1BatchNorm2d)):
            yield module
        elif isinstance(module, Residual):
            yield from _modules(module.body)
            yield from _modules(module.shortcut) if module.shortcut is not None else ()
        else:
            yield from _modules(module)

"""Networks for the tests of ``bnncore.nn``, and the same in plain PyTorch: an oracle that autograd differentiates."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from bnncore.nn import BinaryConv2d, BinaryLinear, BinarySign, L1BatchNorm1d, L1BatchNorm2d
from bnncore.nn.standard import _ActivationSign, _WeightSign

BLOCKS: dict[str, list[Any]] = {
    "dense": [12, L1BatchNorm1d, BinarySign, 7, L1BatchNorm1d, BinarySign, 3, L1BatchNorm1d],
    "pool before the norm": [
        (9, 3, 1, 1),
        L1BatchNorm2d,
        BinarySign,
        (8, 3, 1, 1),
        nn.MaxPool2d(2),
        L1BatchNorm2d,
        BinarySign,
        nn.Flatten(),
        3,
        L1BatchNorm1d,
    ],
    "pool after the sign": [
        (9, 3, 1, 0),
        L1BatchNorm2d,
        BinarySign,
        nn.MaxPool2d((2, 3)),
        (8, (2, 1), 2, 0),
        L1BatchNorm2d,
        BinarySign,
        nn.Flatten(),
        3,
        L1BatchNorm1d,
    ],
    "signs of numbers": [BinarySign, (6, 3, 1, 1), L1BatchNorm2d, BinarySign, nn.AvgPool2d(2), nn.Flatten(), 3],
    "a pool that overlaps": [(6, 3, 1, 1), nn.MaxPool2d(3, 2), L1BatchNorm2d, BinarySign, nn.Flatten(), 3],
    "points": [10, L1BatchNorm1d, BinarySign, nn.Unflatten(1, (10, 1, 1)), (5, 1, 1, 0), L1BatchNorm2d, nn.Flatten()],
    "large windows": [(4, 3, 1, 1), nn.MaxPool2d((8, 6)), L1BatchNorm2d, BinarySign, nn.Flatten(), 3],
}
"""A number is a linear layer's width; four are a convolution's channels, kernel, stride and padding."""


def make_layers(name: str, *, seed: int = 0) -> tuple[list[Any], Any]:
    """Give the modules of a network, with random shifts, and an input for it: whole numbers, as samples are."""
    torch.manual_seed(seed)
    is_dense = isinstance(BLOCKS[name][0], int)
    x = torch.randint(0, 256, (11, 20) if is_dense else (11, 3, 9, 8)).float() * 2 - 255
    shape, modules = x.shape, []
    for item in BLOCKS[name]:
        if isinstance(item, int):
            module: Any = BinaryLinear(shape[1], item)
        elif isinstance(item, tuple):
            module = BinaryConv2d(shape[1], *item)
        elif item in (L1BatchNorm1d, L1BatchNorm2d):
            module = item(shape[1])
            nn.init.normal_(module.bias, std=0.3)
        else:
            module = item() if isinstance(item, type) else item
        modules.append(module)
        with torch.no_grad():
            shape = module(torch.zeros(2, *shape[1:])).shape
        if isinstance(module, (L1BatchNorm1d, L1BatchNorm2d)):
            module.num_batches_tracked.zero_()
    return modules, x


def plain(modules: Any, x: Any) -> Any:
    """Run the modules' formulas in plain PyTorch, training mode, and leave the gradients to autograd."""
    one = torch.ones((), dtype=x.dtype)
    for module in modules:
        if isinstance(module, BinaryConv2d):
            weight = _WeightSign.apply(module.weight, one)
            x = functional.conv2d(x, weight, None, module.stride, module.geometry.padding)
        elif isinstance(module, BinaryLinear):
            x = functional.linear(x, _WeightSign.apply(module.weight, one))
        elif isinstance(module, (L1BatchNorm1d, L1BatchNorm2d)):
            dims = [d for d in range(x.dim()) if d != 1]
            centred = x - x.mean(dims, keepdim=True)
            x = centred / centred.abs().mean(dims, keepdim=True) + module.bias.view(-1, *[1] * (x.dim() - 2))
        elif isinstance(module, BinarySign):
            x = _ActivationSign.apply(x, one)
        else:
            x = module(x)
    return x


def gradients_of(run: Any, modules: Any, x: Any) -> tuple[Any, list[Any]]:
    """Give what ``run(x)`` gives and the gradients of x and all parameters for one fixed gradient above."""
    x = x.clone().requires_grad_()
    parameters = [p for module in modules for p in module.parameters()]
    for parameter in parameters:
        parameter.grad = None
    out = run(x)
    generator = torch.Generator().manual_seed(5)
    out.backward(torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype))
    return out.detach(), [x.grad, *(p.grad.clone() for p in parameters)]


def kept_bytes(run: Any, x: Any) -> int:
    """Bytes that autograd keeps of activations: without parameters, and each memory once."""
    kept: dict[int, int] = {}

    def note(tensor: Any) -> Any:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run(x)
    return sum(kept.values())

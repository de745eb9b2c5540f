"""Residual networks in plain PyTorch, float32 throughout: the oracle beside ``bnncore.nn.standard``, which has chains.

A stem of real weights makes a stream; each unit adds ``norm(sign(s) * sign(W)) + beta`` to it, or to what a shortcut of
average pool, real 1 x 1 convolution and norm makes of it; the head takes the mean of each channel and a real linear
layer. Nothing is rounded: the stream and its gradient are float32. Latent weights are clipped to [-1, 1] after every
step; real ones are not. The gradient of a sign is what its layer says: 1 where ``|x| <= 1``, or ApproxSign's.

Every batch norm is that of ``norm``: "l2" as Algorithm 1 has it, or "l1", whose gradient is exact. There is no "paper":
Algorithm 2 is about chains of binary blocks.

Source: ResNetE (arXiv 1906.08637) and Bi-Real net (ECCV 2018), as Wang et al., arXiv 2102.04270, train them.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from bnncore.errors import ConfigurationError
from bnncore.layers import BinaryConv2d, Conv2d, L1BatchNorm
from bnncore.nn.standard import (
    EPSILON,
    MOMENTUM,
    NormKind,
    StandardNetwork,
    clipped_sign,
    l1_norm,
    weight_sign,
)
from bnncore.residual import ResidualNetwork, Shortcut, Unit
from bnncore.spec import ModelSpec
from bnncore.state import State, to_float32

__all__ = ["StandardResidualNetwork", "approx_sign", "standard_network"]


class _ApproxSign(torch.autograd.Function):
    """sign(x) with sign(0) = +1; the gradient is that of Bi-Real's polynomial, 2 - 2 |x| where |x| < 1."""

    @staticmethod
    def forward(ctx: Any, x: Any, one: Any) -> Any:
        ctx.save_for_backward(x)
        return torch.copysign(one, x)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        (x,) = ctx.saved_tensors
        return grad * (2 - 2 * x.abs()).clamp_(min=0), None


def approx_sign(x: Any, one: Any) -> Any:
    """Give sign(x), sign(0) = +1, with the gradient of ApproxSign; ``one`` is a 1 of x's type."""
    return _ApproxSign.apply(x, one)


class _Norm(nn.Module):
    """Batch norm with beta alone."""

    running_mean: Any
    running_var: Any

    def __init__(self, layer: L1BatchNorm, norm: NormKind, epsilon: float) -> None:
        super().__init__()
        self.norm, self.epsilon = norm, epsilon
        self.beta = nn.Parameter(torch.zeros(layer.features))
        self.register_buffer("running_mean", torch.zeros(layer.features))
        self.register_buffer("running_var", torch.ones(layer.features))

    def forward(self, y: Any) -> Any:
        if self.norm == "l2":
            return functional.batch_norm(
                y, self.running_mean, self.running_var, None, self.beta, self.training, MOMENTUM, self.epsilon
            )
        rows = y.movedim(1, -1)
        return l1_norm(rows.flatten(0, -2), self.beta).view(rows.shape).movedim(-1, 1)


class _Convolution(nn.Module):
    """A convolution with real weights, or with the signs of latent ones."""

    one: Any

    def __init__(self, layer: Conv2d | BinaryConv2d) -> None:
        super().__init__()
        self.layer, self.is_binary = layer, isinstance(layer, BinaryConv2d)
        shape = (layer.out_channels, layer.in_channels, layer.kernel_height, layer.kernel_width)
        self.weight = nn.Parameter(torch.empty(shape))
        self.register_buffer("one", torch.ones(()), persistent=False)
        if self.is_binary:
            nn.init.normal_(self.weight, std=layer.fan_in**-0.5)
            self.clip_weights()
        else:
            limit = (3 / layer.fan_in) ** 0.5
            nn.init.uniform_(self.weight, -limit, limit)

    def clip_weights(self) -> None:
        if self.is_binary:
            with torch.no_grad():
                self.weight.clamp_(-1.0, 1.0)

    def forward(self, x: Any) -> Any:
        layer = self.layer
        weight = weight_sign(self.weight, self.one) if self.is_binary else self.weight
        return functional.conv2d(x, weight, stride=layer.stride, padding=(layer.pad_height, layer.pad_width))


class StandardResidualNetwork(nn.Module):
    """A residual network of a spec.

    Args:
      spec: any residual network that the native engine takes.
      norm: which batch norm, "l2" or "l1". Under l1 it trains only: there are no running statistics.
      epsilon: addend to the variance under l2.

    ``forward`` takes what ``bnncore.nn.trainer.prepare`` gives and gives the logits, float32 [batch, classes].

    Attributes:
      convolutions: by name: the stem, the binary ones, those of shortcuts.
      norms: by name.
      dense: the linear layer of the head.

    Raises:
      ConfigurationError: the norm is "paper".
    """

    one: Any

    def __init__(self, spec: ModelSpec, norm: NormKind = "l2", *, epsilon: float = EPSILON) -> None:
        super().__init__()
        assert spec.residual is not None
        if norm == "paper":
            raise ConfigurationError("Algorithm 2 is about chains of binary blocks: take the norm l1 or l2")
        self.spec = spec
        network = self.network
        convolutions: list[Conv2d | BinaryConv2d] = [network.stem.conv, *(unit.conv for unit in network.units)]
        convolutions += [unit.shortcut.conv for unit in network.units if unit.shortcut is not None]
        self.convolutions = nn.ModuleDict({layer.name: _Convolution(layer) for layer in convolutions})
        self.norms = nn.ModuleDict({layer.name: _Norm(layer, norm, epsilon) for layer in network.norms})
        self.dense = nn.Linear(network.head.dense.in_features, network.head.dense.out_features)
        limit = (3 / network.head.dense.in_features) ** 0.5
        nn.init.uniform_(self.dense.weight, -limit, limit)
        nn.init.zeros_(self.dense.bias)
        self.register_buffer("one", torch.ones(()), persistent=False)

    @property
    def network(self) -> ResidualNetwork:
        """The parts of the network."""
        assert self.spec.residual is not None
        return self.spec.residual

    def forward(self, x: Any) -> Any:
        """Give the logits."""
        s = self._stem(x)
        for unit in self.network.units:
            s = self._unit(unit, s)
        s = functional.relu(s) if self.network.head.relu is not None else s
        return self.dense(s.mean(dim=(2, 3)))

    def loss(self, x: Any, labels: Any) -> Any:
        """Mean cross-entropy, in nats."""
        return functional.cross_entropy(self(x), labels)

    def clip_weights(self) -> None:
        """Bring the latent weights back into [-1, 1]; belongs after every step."""
        for convolution in self.convolutions.values():
            convolution.clip_weights()

    def load_state(self, state: State) -> None:
        """Take weights, beta and bias from a state of the same spec (see ``bnncore.Engine.state``)."""
        with torch.no_grad():
            for name, parameter in self.named_tensors().items():
                value = torch.from_numpy(to_float32(state[name]).copy())
                parameter.copy_(value.permute(0, 3, 1, 2) if value.dim() == 4 else value)

    def named_tensors(self) -> dict[str, Any]:
        """Give the parameters under the names of a state's tensors, in its order; convolutions in PyTorch's."""
        found: dict[str, Any] = {}
        for tensor in self.spec.tensors:
            layer, part = tensor.name.rsplit(".", 1)
            if part == "beta":
                found[tensor.name] = self.norms[layer].beta
            elif not tensor.is_statistic:
                module = self.dense if layer == self.network.head.dense.name else self.convolutions[layer]
                found[tensor.name] = getattr(module, part)
        return found

    def gradients(self) -> dict[str, NDArray[Any]]:
        """Give the gradients of the last backward pass under the names, and in the shapes, of a state's tensors."""
        return {
            name: (p.grad.permute(0, 2, 3, 1) if p.dim() == 4 else p.grad).numpy()
            for name, p in self.named_tensors().items()
        }

    def _stem(self, x: Any) -> Any:
        stem = self.network.stem
        s = self.norms[stem.norm.name](self.convolutions[stem.conv.name](x))
        s = functional.relu(s) if stem.relu is not None else s
        if stem.pool is not None:
            window = (stem.pool.pool_height, stem.pool.pool_width)
            s = functional.max_pool2d(s, window, stem.pool.strides, stem.pool.pads)
        return s if stem.second_norm is None else self.norms[stem.second_norm.name](s)

    def _unit(self, unit: Unit, s: Any) -> Any:
        sign = clipped_sign if unit.sign.gradient == "clip" else approx_sign
        added = self.norms[unit.norm.name](self.convolutions[unit.conv.name](sign(s, self.one)))
        return added + (s if unit.shortcut is None else self._shortcut(unit.shortcut, s))

    def _shortcut(self, shortcut: Shortcut, s: Any) -> Any:
        if shortcut.pool is not None:
            s = functional.avg_pool2d(s, (shortcut.pool.pool_height, shortcut.pool.pool_width))
        return self.norms[shortcut.norm.name](self.convolutions[shortcut.conv.name](s))


def standard_network(spec: ModelSpec, norm: NormKind = "l2") -> StandardNetwork | StandardResidualNetwork:
    """Build the network of a spec, a chain of blocks or a residual network, with fresh weights."""
    return StandardNetwork(spec, norm) if spec.residual is None else StandardResidualNetwork(spec, norm)

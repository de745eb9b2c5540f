"""The layers of a binary network under PyTorch's names, with PyTorch's arguments in PyTorch's order.

Each stands alone wherever the layer that it is named after would: ``BinaryLinear`` and ``BinaryConv2d`` for Linear and
Conv2d, ``L1BatchNorm1d/2d`` for BatchNorm1d/2d, ``BinarySign`` for ReLU. In a ``bnncore.nn.Sequential`` they are run
block by block, which is what saves the memory. Alone a layer keeps what its own gradient needs, in bits where those
are signs.

They compute in float32 under automatic mixed precision too, and ``torch.compile`` leaves them as they are.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn.modules.utils import _pair

from bnncore.layers import SIGN_GRADIENTS
from bnncore.nn.channels import Channels, measure
from bnncore.nn.functional import binary_products, l1_batch_norm, sign
from bnncore.nn.products import Geometry

__all__ = ["BinaryConv2d", "BinaryLinear", "BinarySign", "L1BatchNorm1d", "L1BatchNorm2d"]


class _Binary(nn.Module):
    """Latent weights in [-1, 1], of which the sign is used; sign(0) = +1.

    The gradient of a sign passes to its latent weight unchanged, and a training step begins by bringing weights that
    the optimizer moved past -1 or 1 back to there (Courbariaux and Bengio), so nothing has to be added to a training
    loop. There is no bias: the batch norm that follows would take it away again.
    """

    weight: Any
    geometry: Geometry | None = None

    def _start(self, shape: tuple[int, ...], bias: bool, device: Any, dtype: Any) -> None:
        if bias:
            raise ValueError(
                f"{type(self).__name__} has no bias: the batch norm after it would subtract it again. Leave bias out"
            )
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights from a normal distribution of standard deviation 1 / sqrt(fan-in), as arXiv 2102.04270 does."""
        nn.init.normal_(self.weight, std=math.prod(self.weight.shape[1:]) ** -0.5)
        self.clip_weights()

    def clip_weights(self) -> None:
        """Bring the latent weights into [-1, 1]. Under ``.data``: what backward passes read of them is the sign."""
        self.weight.data.clamp_(-1.0, 1.0)

    @torch.compiler.disable
    def forward(self, x: Any) -> Any:
        """Multiply with the signs of the weights; x need not be signs itself."""
        if self.training:
            self.clip_weights()
        return binary_products(x, self.weight, self.geometry)


class BinaryLinear(_Binary):
    """``torch.nn.Linear`` with weights of +1 and -1: ``y = x @ sign(weight).T``.

    Args:
      in_features: numbers in.
      out_features: numbers out.
      bias: must be False.
      device: of the weights.
      dtype: of the latent weights.

    Shapes: x [..., in_features] -> y [..., out_features].
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = False, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self._start((out_features, in_features), bias, device, dtype)

    def extra_repr(self) -> str:
        """What ``print`` says of it."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


class BinaryConv2d(_Binary):
    """``torch.nn.Conv2d`` with weights of +1 and -1. Padding is with zeros, which count as 0 and not as a sign.

    Args:
      in_channels: channels in.
      out_channels: channels out.
      kernel_size: rows and columns of the kernel, or one number for both.
      stride: likewise.
      padding: likewise, or "valid" (none), or "same": (kernel - 1) / 2 rows and columns on each side, of odd kernels,
        with any stride.
      dilation: likewise.
      groups: as in PyTorch.
      bias: must be False.
      padding_mode: must be "zeros".
      device: of the weights.
      dtype: of the latent weights.

    Shapes: x [batch, in_channels, height, width] -> y [batch, out_channels, ...].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if padding_mode != "zeros":
            raise ValueError(f"BinaryConv2d pads with zeros only, got padding_mode={padding_mode!r}")
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"in_channels and out_channels must be multiples of groups, got {groups} groups")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.dilation = _pair(kernel_size), _pair(stride), _pair(dilation)
        self.padding = padding if isinstance(padding, str) else _pair(padding)
        self.geometry = Geometry(self.stride, self._pads(), self.dilation, groups)
        self._start((out_channels, in_channels // groups, *self.kernel_size), bias, device, dtype)

    def _pads(self) -> tuple[int, int]:
        if not isinstance(self.padding, str):
            return (self.padding[0], self.padding[1])
        if self.padding == "valid":
            return (0, 0)
        if self.padding != "same" or not all(size % 2 for size in self.kernel_size):
            raise ValueError(
                'padding must be numbers, "valid", or "same" with a kernel of odd sides, got '
                f"{self.padding!r} with {self.kernel_size}"
            )
        rows, columns = (step * (size - 1) // 2 for size, step in zip(self.kernel_size, self.dilation, strict=True))
        return rows, columns

    def extra_repr(self) -> str:
        """What ``print`` says of it."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        text += f", padding={self.padding!r}"
        text += f", dilation={self.dilation}" if self.dilation != (1, 1) else ""
        return text + (f", groups={self.groups}" if self.groups != 1 else "")


class _L1BatchNorm(nn.Module):
    """Batch norm by the mean absolute deviation, of as many dimensions as ``dims`` says."""

    bias: Any
    running_mean: Any
    running_mean_abs_dev: Any
    num_batches_tracked: Any
    dims: tuple[int, ...]

    def __init__(
        self,
        num_features: int,
        eps: float = 0.0,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        factory = {"device": device, "dtype": dtype}
        self.register_parameter("bias", nn.Parameter(torch.zeros(num_features, **factory)) if affine else None)
        tracks = track_running_stats
        self.register_buffer("running_mean", torch.zeros(num_features, **factory) if tracks else None)
        self.register_buffer("running_mean_abs_dev", torch.ones(num_features, **factory) if tracks else None)
        count = torch.zeros((), dtype=torch.long, device=device) if tracks else None
        self.register_buffer("num_batches_tracked", count)

    def reset_parameters(self) -> None:
        """Forget what was learnt."""
        if self.affine:
            nn.init.zeros_(self.bias)
        if self.track_running_stats:
            self.running_mean.zero_()
            self.running_mean_abs_dev.fill_(1)
            self.num_batches_tracked.zero_()

    @property
    def uses_batch(self) -> bool:
        """Whether it normalises by the statistics of the batch, not by the running ones."""
        return self.training or not self.track_running_stats

    def take_channels(self, y: Any, *, scale: float = 1.0) -> Channels:
        """Give what ``scale`` y, y [..., N], is normalised by, eps included; count it into the running statistics."""
        if self.uses_batch:
            found = measure(y)
            if scale != 1:
                found = Channels(found.mean * scale, found.mean_abs_dev * scale)
            if self.track_running_stats:
                self._count_in(found)
        else:
            found = Channels(self.running_mean.double(), self.running_mean_abs_dev.double())
        return Channels(found.mean, found.mean_abs_dev + self.eps) if self.eps else found

    def _count_in(self, channels: Channels) -> None:
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            one = torch.ones((), dtype=self.running_mean.dtype, device=self.running_mean.device)
            share = one / self.num_batches_tracked
            if self.momentum is not None:
                share = share.clamp_(min=self.momentum)
            keep = 1 - share
            for running, new in (
                (self.running_mean, channels.mean),
                (self.running_mean_abs_dev, channels.mean_abs_dev),
            ):
                running.mul_(keep).add_((1 - keep) * new.to(running.dtype))

    @torch.compiler.disable
    def forward(self, y: Any) -> Any:
        """Normalise y [batch, features, ...] over all dimensions but its second."""
        if y.dim() not in self.dims or y.shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__} takes {' or '.join(map(str, self.dims))} dimensions with {self.num_features} "
                f"features in the second, got {list(y.shape)}"
            )
        return l1_batch_norm(y, self)

    def extra_repr(self) -> str:
        """What ``print`` says of it."""
        text = f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}"
        return f"{text}, track_running_stats={self.track_running_stats}"


class L1BatchNorm1d(_L1BatchNorm):
    """Batch norm by the mean absolute deviation: ``(y - mean) / (mean |y - mean| + eps) + bias``; no learnt scale.

    Shapes: [batch, features], or [batch, features, length].

    Args:
      num_features: channels.
      eps: addend to the deviation. A channel without any gives its bias where this is 0.
      momentum: share of the newest batch in the running statistics; that of the n-th batch is at least 1 / n, so that
        they hold from the first batch on. None: always 1 / n.
      affine: learn ``bias``.
      track_running_stats: keep running statistics, and use them in evaluation.
      device: of parameters and statistics.
      dtype: likewise.

    Attributes:
      bias: learnt shift, or None.
      running_mean, running_mean_abs_dev, num_batches_tracked: statistics, or None.
    """

    dims = (2, 3)


class L1BatchNorm2d(_L1BatchNorm):
    """``L1BatchNorm1d`` of maps: [batch, channels, height, width]."""

    dims = (4,)


class BinarySign(nn.Module):
    """+1 where x is not negative, -1 elsewhere.

    Args:
      gradient: "clip": the gradient passes where ``|x| <= 1`` and is 0 elsewhere; "approx": it is multiplied
        with ``max(0, 2 - 2 |x|)``, which is ApproxSign of Bi-Real networks.
    """

    def __init__(self, gradient: str = "clip") -> None:
        super().__init__()
        if gradient not in SIGN_GRADIENTS:
            raise ValueError(f"gradient must be one of {list(SIGN_GRADIENTS)}, got {gradient!r}")
        self.gradient = gradient

    @torch.compiler.disable
    def forward(self, x: Any) -> Any:
        """Take the sign; of x's shape and type."""
        return sign(x, self.gradient)

    def extra_repr(self) -> str:
        """What ``print`` says of it."""
        return "" if self.gradient == "clip" else f"gradient={self.gradient!r}"

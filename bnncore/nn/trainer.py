"""One training step of the standard algorithm in PyTorch, run in one of the ways of ``bnncore.nn.variants``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bnncore.nn.maps import channels_second, input_map
from bnncore.nn.standard import NormKind
from bnncore.nn.standard_residual import standard_network
from bnncore.nn.variants import VARIANTS, Variant
from bnncore.spec import ModelSpec

__all__ = ["StandardTrainer", "prepare", "torch_version", "use_threads"]


class StandardTrainer:
    """Trains one network with Adam.

    Args:
      spec: the network.
      variant: how to run the step.
      step_size: Adam's, as in the preset ``standard``.
      seed: of the initial weights.
      norm: which batch norm, and with it which algorithm (see ``bnncore.nn.standard``).

    A step includes forward, backward, Adam, clipping, and reading the loss; not ``prepare``.
    """

    def __init__(
        self,
        spec: ModelSpec,
        variant: Variant = VARIANTS["eager"],
        *,
        step_size: float = 1e-3,
        seed: int = 0,
        norm: NormKind = "l2",
    ) -> None:
        torch.manual_seed(seed)
        self.network = standard_network(spec, norm)
        if variant.channels_last:
            self.network.to(memory_format=torch.channels_last)
        # Only what differs from the default is named: without it PyTorch takes its loop over all tensors at once.
        options: dict[str, Any] = {"fused": True} if variant.fused else {}
        self._optimizer = torch.optim.Adam(self.network.parameters(), lr=step_size, **options)
        self._loss = torch.compile(self.network.loss) if variant.compiled else self.network.loss

    def step(self, x: Any, labels: Any) -> float:
        """Train on what ``prepare`` gave; give its loss before the step."""
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._loss(x, labels)
        loss.backward()
        self._optimizer.step()
        self.network.clip_weights()
        return float(loss.detach())


def prepare(
    spec: ModelSpec, variant: Variant, samples: NDArray[np.uint8], labels: NDArray[np.int32]
) -> tuple[Any, Any]:
    """Turn a batch into what a step takes.

    Args:
      spec: of the network.
      variant: that will run the step.
      samples: uint8 [batch, features], taken as x = (2u - 255) / 255.
      labels: int32 [batch].

    Returns:
      float32 [batch, features] or [batch, channels, height, width], and int64 [batch].
    """
    shape = input_map(spec)
    x = torch.from_numpy(samples.astype(np.float32)).mul_(2 / 255).sub_(1)
    if shape is not None:
        x = channels_second(x.reshape(-1, *shape))
        x = x.contiguous(memory_format=torch.channels_last if variant.channels_last else torch.contiguous_format)
    return x, torch.from_numpy(labels.astype(np.int64))


def use_threads(threads: int) -> None:
    """Say how many threads PyTorch's kernels may use; belongs before the first of them."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # Adam's moments may decay to denormals, which processors are slow with


def torch_version() -> str:
    """PyTorch's version."""
    return str(torch.__version__)

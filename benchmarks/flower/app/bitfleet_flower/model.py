"""The network ``mlp`` in float32 PyTorch: the standard algorithm, latent weights, Adam, signs on the way forward."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

WIDTHS = (784, 256, 256, 256, 256, 10)


class Sign(torch.autograd.Function):
    """The sign, +1 at 0; its gradient passes where the input lies within [-1, 1]."""

    @staticmethod
    def forward(ctx, values):
        ctx.save_for_backward(values)
        return torch.where(values >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx, gradient):
        (values,) = ctx.saved_tensors
        return gradient * (values.abs() <= 1)


class BinaryMlp(nn.Module):
    """Dense layers of binary weights, each with a batch norm behind it and signs between them."""

    def __init__(self) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(WIDTHS))
        self.dense = nn.ModuleList(nn.Linear(inputs, outputs, bias=False) for inputs, outputs in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm1d(outputs) for _, outputs in pairs)
        for layer in self.dense:
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, values):
        for number, (layer, norm) in enumerate(zip(self.dense, self.norms, strict=True)):
            values = norm(functional.linear(Sign.apply(values) if number else values, Sign.apply(layer.weight)))
        return values


def read_idx(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Map a folder's samples, uint8 [n, 784], and its labels, int64 [n]; they stay on the disk until they are used."""
    samples = np.memmap(folder / f"{split}-images-idx3-ubyte", np.uint8, "r", offset=16).reshape(-1, WIDTHS[0])
    labels = np.fromfile(folder / f"{split}-labels-idx1-ubyte", np.uint8, offset=8).astype(np.int64)
    return samples, labels


def as_input(samples: np.ndarray) -> torch.Tensor:
    """Bring uint8 samples to [-1, 1] in float32."""
    return torch.from_numpy(samples.astype(np.float32) / 127.5 - 1)


def train(model: BinaryMlp, samples: np.ndarray, labels: np.ndarray, steps: int, batch_size: int) -> float:
    """Take some steps of Adam on a device's samples; returns seconds from the first step to the last."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    generator = np.random.default_rng()
    model.train()
    began = time.perf_counter()
    order = np.empty(0, np.int64)
    for _ in range(steps):
        if len(order) < batch_size:
            order = generator.permutation(len(labels))
        batch, order = np.sort(order[:batch_size]), order[batch_size:]
        optimizer.zero_grad()
        functional.cross_entropy(model(as_input(samples[batch])), torch.from_numpy(labels[batch])).backward()
        optimizer.step()
        with torch.no_grad():
            for layer in model.dense:
                layer.weight.clamp_(-1, 1)
    return time.perf_counter() - began


def evaluate(model: BinaryMlp, folder: Path) -> float:
    """Return the accuracy on the held-out samples, in percent."""
    samples, labels = read_idx(folder, "t10k")
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(as_input(samples[i : i + 500])).argmax(1).numpy() == labels[i : i + 500]).sum())
            for i in range(0, len(labels), 500)
        )
    return 100 * right / len(labels)

"""What rounding gradients to 8 bits costs: the paper's MLP on MNIST with exact and with rounded gradients.

    python -m benchmarks.gradient_bits --data DIR --epochs 4 --json PATH

The same network, seeds, batches and optimizer (Adam on float32 latent weights, step size decayed linearly) in plain
NumPy, four times: gradients in float64; dY rounded stochastically to int8; dX and dY both; and the same without the
mask |x| <= 1 of the straight-through estimator, which is not optional. The native engine's ``adam``, which rounds both,
runs beside them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bnncore.data import open_dataset
from bnncore.data.dataset import Dataset
from bnncore.engine import Engine, permutation
from bnncore.optimizer import resolve_preset
from bnncore.reference import l1_batch_norm, l1_batch_norm_gradient
from bnncore.zoo import mlp

Floats = NDArray[np.float64]
BATCH = 100


def exact(gradient: Floats, _: np.random.Generator) -> Floats:
    """Leave a gradient as it is."""
    return gradient


def int8(gradient: Floats, rng: np.random.Generator) -> Floats:
    """Round to 127 steps either side, stochastically, under the tensor's own largest magnitude."""
    scale = np.abs(gradient).max() / 127
    rounded: Floats = np.floor(gradient / scale + rng.random(gradient.shape)) * scale if scale > 0 else gradient
    return rounded


class Network:
    """The paper's MLP with float latent weights, Adam, and a rounding of its choice."""

    def __init__(self, *, round_x: Callable[..., Floats], round_y: Callable[..., Floats], mask: bool) -> None:
        self.round_x, self.round_y, self.mask = round_x, round_y, mask
        rng = np.random.default_rng(0)
        self.rng = np.random.default_rng(1)
        blocks = mlp().blocks
        self.weights = [
            rng.uniform(-1, 1, (b.out_features, b.in_features)) * np.sqrt(3 / b.in_features) for b in blocks
        ]
        self.beta = [np.zeros(b.out_features) for b in blocks]
        self.moments = [[np.zeros_like(p), np.zeros_like(p)] for p in (*self.weights, *self.beta)]
        self.statistics = [(np.zeros(b.out_features), np.ones(b.out_features)) for b in blocks]
        self.steps = 0

    def forward(self, u: NDArray[np.uint8]) -> tuple[list[Floats], list[Floats], list[Floats]]:
        """Give what each block reads, its pre-activations and its normalised outputs, each [B, *]."""
        read: list[Floats] = []
        products: list[Floats] = []
        outputs: list[Floats] = []
        x = 2.0 * u - 255.0
        for weights, beta in zip(self.weights, self.beta, strict=True):
            read.append(x)
            products.append(x @ np.where(weights < 0, -1.0, 1.0).T)
            normalised, mu, psi = l1_batch_norm(products[-1], beta)
            outputs.append(normalised)
            keep = 0.9 if self.steps else 0.0
            i = len(outputs) - 1
            mean, deviation = self.statistics[i]
            self.statistics[i] = (keep * mean + (1 - keep) * mu, keep * deviation + (1 - keep) * psi)
            x = np.where(normalised < 0, -1.0, 1.0)
        return read, products, outputs

    def step(self, u: NDArray[np.uint8], labels: NDArray[np.int64], step_size: float) -> None:
        """Train on one batch."""
        read, products, outputs = self.forward(u)
        shifted = outputs[-1] - outputs[-1].max(axis=1, keepdims=True)
        gradient = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
        gradient[np.arange(len(labels)), labels] -= 1
        gradient /= len(labels)
        self.steps += 1
        for i in range(len(self.weights) - 1, -1, -1):
            if self.mask and i < len(self.weights) - 1:
                gradient = gradient * (np.abs(outputs[i]) <= 1)
            self._adam(len(self.weights) + i, self.beta[i], gradient.sum(axis=0), step_size)
            grad_y = self.round_y(l1_batch_norm_gradient(products[i], gradient), self.rng)
            gradient = self.round_x(grad_y @ np.where(self.weights[i] < 0, -1.0, 1.0), self.rng)
            self._adam(i, self.weights[i], grad_y.T @ read[i], step_size)
            np.clip(self.weights[i], -1, 1, out=self.weights[i])

    def accuracy(self, u: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
        """Percent of samples whose class is found with the running statistics."""
        x = 2.0 * u - 255.0
        for weights, beta, (mean, deviation) in zip(self.weights, self.beta, self.statistics, strict=True):
            output = (x @ np.where(weights < 0, -1.0, 1.0).T - mean) / deviation + beta
            x = np.where(output < 0, -1.0, 1.0)
        return 100 * float((output.argmax(axis=1) == labels).mean())

    def _adam(self, which: int, value: Floats, gradient: Floats, step_size: float) -> None:
        mean, square = self.moments[which]
        mean += 0.1 * (gradient - mean)
        square += 0.001 * (gradient * gradient - square)
        corrected = np.sqrt(square / (1 - 0.999**self.steps)) + 1e-8
        value -= step_size * mean / (1 - 0.9**self.steps) / corrected


def load(dataset: Dataset) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read a whole data set; this benchmark trades memory for speed."""
    rows = np.empty((dataset.num_examples, dataset.rows.row_bytes), np.uint8)
    dataset.read(np.arange(dataset.num_examples, dtype=np.uint32), rows)
    return rows, dataset.labels.astype(np.int64)


def main(argv: list[str] | None = None) -> int:
    """Run the comparison and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of MNIST (default: $BITFLEET_DATA)")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--json", help="where to write the figures ('-' = standard output)")
    arguments = parser.parse_args(argv)
    with (
        open_dataset("mnist", arguments.data, split="train") as train,
        open_dataset("mnist", arguments.data, split="test") as test,
    ):
        images, labels = load(train)
        test_images, test_labels = load(test)
    variants = {
        "float64": Network(round_x=exact, round_y=exact, mask=True),
        "int8 dY": Network(round_x=exact, round_y=int8, mask=True),
        "int8 dX and dY": Network(round_x=int8, round_y=int8, mask=True),
        "int8 dX and dY, no mask": Network(round_x=int8, round_y=int8, mask=False),
    }
    engine = Engine(mlp(), batch_size=BATCH, preset=resolve_preset("bitfleet", "adam"))
    results: dict[str, list[float]] = {name: [] for name in (*variants, "native adam (int8 dX and dY)")}
    steps = len(labels) // BATCH
    for epoch in range(arguments.epochs):
        order = permutation(len(labels), 0, epoch)
        for step in range(steps):
            index = order[step * BATCH : (step + 1) * BATCH]
            scale = 1 - (epoch * steps + step) / (arguments.epochs * steps)
            for network in variants.values():
                network.step(images[index], labels[index], 1e-3 * scale)
            engine.input[:] = images[index]
            engine.labels[:] = labels[index]
            engine.step(scale)
        for name, network in variants.items():
            results[name].append(network.accuracy(test_images, test_labels))
        hits = 0
        for start in range(0, len(test_labels), BATCH):
            engine.input[:] = test_images[start : start + BATCH]
            engine.labels[:] = test_labels[start : start + BATCH]
            hits += engine.evaluate_batch(BATCH).correct
        results["native adam (int8 dX and dY)"].append(100 * hits / len(test_labels))
        print(
            f"epoch {epoch + 1}: " + ", ".join(f"{name} {values[-1]:.2f}" for name, values in results.items()),
            flush=True,
        )
    if arguments.json:
        text = json.dumps({"epochs": arguments.epochs, "accuracy": results}, indent=2)
        sys.stdout.write(text + "\n") if arguments.json == "-" else Path(arguments.json).write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

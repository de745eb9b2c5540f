"""What rounding gradients to 8, 6 and 4 bits costs: the paper's MLP on MNIST with exact and with rounded gradients.

    python -m benchmarks.gradient_bits --data DIR --epochs 4 --seeds 0,1,2 --json PATH

The same network, batches and optimizer (Adam on float32 latent weights, step size decayed linearly) in plain NumPy:
gradients in float64; dY rounded stochastically to int8; dX and dY both; both to 6 and to 4 bits, with one scale for the
tensor or one for each channel; and int8 without the mask |x| <= 1 of the straight-through estimator, which is not
optional. The native engine's ``adam``, which rounds both to int8, runs beside them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bnncore.data import open_dataset
from bnncore.data.dataset import Dataset
from bnncore.engine import Engine, permutation
from bnncore.optimizer import resolve_preset
from bnncore.reference import l1_batch_norm, l1_batch_norm_gradient
from bnncore.zoo import mlp

Floats = NDArray[np.float64]
Samples = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images [N, 784] and labels [N]."""
BATCH = 100


def exact(gradient: Floats, _: np.random.Generator) -> Floats:
    """Leave a gradient as it is."""
    return gradient


@dataclass(frozen=True)
class Rounding:
    """Round stochastically to whole steps, ``2^(bits - 1) - 1`` of them either side of 0.

    Attributes:
      bits: of a rounded gradient, its sign among them.
      by_channel: the largest magnitude of each column [B, this] is its scale; otherwise the whole tensor's is.
    """

    bits: int
    by_channel: bool = False

    def __call__(self, gradient: Floats, rng: np.random.Generator) -> Floats:
        largest = np.abs(gradient).max(axis=0 if self.by_channel else None, keepdims=True)
        step = np.where(largest > 0, largest, 1) / (2 ** (self.bits - 1) - 1)
        rounded: Floats = np.floor(gradient / step + rng.random(gradient.shape)) * step
        return rounded


INT8 = Rounding(8)


class Network:
    """The paper's MLP with float latent weights, Adam, and a rounding of its choice."""

    def __init__(
        self, seed: int, *, round_x: Callable[..., Floats], round_y: Callable[..., Floats], mask: bool = True
    ) -> None:
        self.round_x, self.round_y, self.mask = round_x, round_y, mask
        rng = np.random.default_rng([0, seed])
        self.rng = np.random.default_rng([1, seed])
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
        x = 2.0 * u.astype(np.float64) - 255.0
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


def load(dataset: Dataset) -> Samples:
    """Read a whole data set; this benchmark trades memory for speed."""
    rows = np.empty((dataset.num_examples, dataset.rows.row_bytes), np.uint8)
    dataset.read(np.arange(dataset.num_examples, dtype=np.uint32), rows)
    return rows, dataset.labels.astype(np.int64)


def variants(seed: int) -> dict[str, Network]:
    """Give the networks that are compared, by what is rounded in them."""

    def both(rounding: Rounding, *, mask: bool = True) -> Network:
        return Network(seed, round_x=rounding, round_y=rounding, mask=mask)

    return {
        "float64": Network(seed, round_x=exact, round_y=exact),
        "int8 dY": Network(seed, round_x=exact, round_y=INT8),
        "int8 dX and dY": both(INT8),
        "6 bits": both(Rounding(6)),
        "6 bits, a scale a channel": both(Rounding(6, by_channel=True)),
        "4 bits": both(Rounding(4)),
        "4 bits, a scale a channel": both(Rounding(4, by_channel=True)),
        "int8 dX and dY, no mask": both(INT8, mask=False),
    }


def run(seed: int, epochs: int, train: Samples, test: Samples) -> dict[str, list[float]]:
    """Train every variant, and the engine, on the same batches; give test accuracies in percent by epoch."""
    (images, labels), (test_images, test_labels) = train, test
    networks = variants(seed)
    engine = Engine(mlp(), batch_size=BATCH, preset=resolve_preset("bitfleet", "adam"), seed=seed)
    native = "native adam (int8 dX and dY)"
    results: dict[str, list[float]] = {name: [] for name in (*networks, native)}
    steps = len(labels) // BATCH
    for epoch in range(epochs):
        order = permutation(len(labels), seed, epoch)
        for step in tqdm(range(steps), desc=f"seed {seed}, epoch {epoch + 1}", leave=False, disable=None):
            index = order[step * BATCH : (step + 1) * BATCH]
            scale = 1 - (epoch * steps + step) / (epochs * steps)
            for network in networks.values():
                network.step(images[index], labels[index], 1e-3 * scale)
            engine.input[:] = images[index]
            engine.labels[:] = labels[index]
            engine.step(scale)
        for name, network in networks.items():
            results[name].append(network.accuracy(test_images, test_labels))
        hits = 0
        for start in range(0, len(test_labels), BATCH):
            engine.input[:] = test_images[start : start + BATCH]
            engine.labels[:] = test_labels[start : start + BATCH]
            hits += engine.evaluate_batch(BATCH).correct
        results[native].append(100 * hits / len(test_labels))
        print(
            f"seed {seed}, epoch {epoch + 1}: "
            + ", ".join(f"{name} {values[-1]:.2f}" for name, values in results.items()),
            flush=True,
        )
    return results


def main(argv: list[str] | None = None) -> int:
    """Run the comparison and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of MNIST (default: $BITFLEET_DATA)")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", default="0", metavar="N,N,...", help="default: 0")
    parser.add_argument("--json", help="where to write the figures ('-' = standard output)")
    arguments = parser.parse_args(argv)
    with (
        open_dataset("mnist", arguments.data, split="train") as train,
        open_dataset("mnist", arguments.data, split="test") as test,
    ):
        samples = load(train), load(test)
    results = {seed: run(seed, arguments.epochs, *samples) for seed in map(int, arguments.seeds.split(","))}
    for name in next(iter(results.values())):
        last = [by_name[name][-1] for by_name in results.values()]
        print(f"{name:<30}{' '.join(f'{value:.2f}' for value in last)}   mean {statistics.mean(last):.2f} %")
    if arguments.json:
        text = json.dumps({"epochs": arguments.epochs, "accuracy_by_seed": results}, indent=2)
        sys.stdout.write(text + "\n") if arguments.json == "-" else Path(arguments.json).write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

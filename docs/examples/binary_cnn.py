"""Your own PyTorch CNN made binary: change the names of its layers, train it as always, then let a fleet go on.

Run it with: python docs/examples/binary_cnn.py      (needs pip install 'bitfleet[server,torch]')
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bnncore import Engine, evaluate, open_dataset, save_checkpoint
from bnncore.data import Dataset
from bnncore.nn import BinaryConv2d, BinaryLinear, BinarySign, L1BatchNorm1d, L1BatchNorm2d, Sequential, convert
from server.notebook import federate

STEPS, BATCH = 100, 50


def ordinary() -> nn.Sequential:
    """Return the network as it was."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10, bias=False),
        nn.BatchNorm1d(10),
    )


def binary() -> Sequential:
    """Return the same with binary layers."""
    return Sequential(
        BinaryConv2d(1, 16, 3, bias=False),
        L1BatchNorm2d(16),
        BinarySign(),
        BinaryConv2d(16, 32, 3, bias=False),
        L1BatchNorm2d(32),
        BinarySign(),
        nn.Flatten(),
        BinaryLinear(512, 10, bias=False),
        L1BatchNorm1d(10),
    )


def main() -> None:
    """Train in PyTorch, move to the engine, and federate from there."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = binary()
    spec = convert.spec_of(network, input_shape=(8, 8, 1))
    with digits("train") as samples, digits("test") as held_out, tempfile.TemporaryDirectory() as folder:
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        random = np.random.default_rng(0)
        for _ in range(STEPS):
            indices = random.integers(0, samples.num_examples, BATCH).astype(np.uint32)
            rows = np.empty((BATCH, spec.input_features), np.uint8)
            samples.read(indices, rows)
            labels = torch.from_numpy(samples.labels[indices].astype(np.int64))
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(convert.to_input(spec, rows)), labels).backward()
            optimizer.step()
        floats = sum(parameter.numel() for parameter in ordinary().parameters())
        print(f"{floats} weights of 32 bits before, {spec.num_binary_weights} of one bit now")

        engine = Engine(spec, batch_size=BATCH)
        engine.load_state(convert.state_of(network, spec, dtype=np.int8))
        print(f"trained in PyTorch: {evaluate(engine, held_out).accuracy:.1f} %")

        start = Path(folder) / "start.safetensors"
        save_checkpoint(start, spec, engine.state())
        history = federate(
            dataset=samples,
            num_devices=4,
            evaluation=held_out,
            model=spec,
            start={"checkpoint": str(start)},
            rounds=2,
            local_steps=20,
            batch_size=BATCH,
            progress=False,
        )
        print(f"and after 2 rounds on 4 devices: {history.accuracy:.1f} %")
        back = convert.network(spec, history.state)
        print(f"back in PyTorch: {type(back).__name__} of {len(back)} layers")


def digits(split: str) -> Dataset:
    """Open the digits, as images of one channel."""
    flat = open_dataset("digits", None, split=split)  # type: ignore[arg-type]
    return Dataset(flat.name, flat.rows, flat.labels, classes=flat.classes, input_shape=(8, 8, 1))


if __name__ == "__main__":
    main()

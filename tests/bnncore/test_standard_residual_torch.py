"""Algorithm 1 on residual networks, in NumPy and natively, against PyTorch in float64: every gradient, and 20 steps.

A sign, a relu or a pool decides by a number's side of a threshold. One that float32 puts on the other side than float64
would turn whole products, and nothing could be said of what follows; so PyTorch's network goes on from the numbers that
it is compared with, wherever a norm or an addition gave them, once they were found to be close to its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.bnncore.residual_cases import CASES, random_batch, start

torch: Any = pytest.importorskip("torch")

from bnncore.engine import Engine  # noqa: E402
from bnncore.nn import convert  # noqa: E402
from bnncore.nn.standard_residual import StandardResidualNetwork  # noqa: E402
from bnncore.optimizer import OPTIMIZERS, resolve_preset  # noqa: E402
from bnncore.reference.published_residual import PublishedResidualReference  # noqa: E402
from bnncore.spec import ModelSpec  # noqa: E402
from bnncore.state import State, without_statistics  # noqa: E402
from bnncore.zoo import bireal18, resnete18  # noqa: E402

UNIT = 2.0**-24
"""float32 rounds a number by this share at most."""
STEPS = 20


def bound(spec: ModelSpec, batch_size: int) -> float:
    """How far float32 may be off, as a share of the largest gradient of a tensor.

    A gradient is a chain of n additions, n the positions of a batch, whose partial sums grow with their root: n
    roundings, each by UNIT of such a sum, are off by UNIT sqrt(n / 2) of the last one; six times that is never seen.
    What arrives there has passed a norm and a chain of 9 channels' products in each unit above, each of which adds
    likewise.
    """
    assert spec.residual is not None
    positions = batch_size * math.prod(spec.residual.stem.conv.out_map[:2])
    chains = [math.sqrt(positions / 2)]
    chains += [math.sqrt(9 * unit.conv.out_channels / 2) + 4 for unit in spec.residual.units]
    return 6 * UNIT * math.sqrt(sum(n**2 for n in chains)) * 2


def tolerance(spec: ModelSpec) -> float:
    """How far an output of a norm may be off: 8 roundings each of numbers up to 16, and the stem's chain."""
    assert spec.residual is not None
    return UNIT * 16 * (8 + spec.residual.stem.conv.fan_in)


class Oracle(StandardResidualNetwork):
    """The network in float64, which goes on from what another program computed.

    Args:
      spec: a residual network.
      state: where the step starts.
      outputs: what every batch norm gave in the other program, float32 [B, P, Q, N] by its name.
    """

    def __init__(self, spec: ModelSpec, state: State, outputs: Mapping[str, NDArray[np.float32]]) -> None:
        super().__init__(spec, epsilon=1e-30)
        self.double()
        self.load_state(state)
        self.tolerance = tolerance(spec)
        self.outputs = {name: torch.from_numpy(values.transpose(0, 3, 1, 2).copy()) for name, values in outputs.items()}
        for name, norm in self.norms.items():
            norm.register_forward_hook(lambda _, __, x, name=name: self.go_on_from(self.outputs[name], x, name))

    def go_on_from(self, there: Any, x: Any, name: str) -> Any:
        """Give the other program's numbers, with the gradient of x."""
        worst = (x.detach() - there).abs().max().item()
        assert worst <= self.tolerance, f"{name} gives numbers that are off by {worst}"
        return x + (there - x).detach()

    def _stem(self, x: Any) -> Any:
        s = super()._stem(x)
        self.stream = s.detach().float()
        return s

    def _unit(self, unit: Any, s: Any) -> Any:
        way = self.stream if unit.shortcut is None else self.outputs[unit.shortcut.norm.name]
        self.stream = way + self.outputs[unit.norm.name]
        return self.go_on_from(self.stream, super()._unit(unit, s), unit.name)

    def check(
        self, u: NDArray[np.uint8], labels: NDArray[np.int32], loss: float, found: Mapping[str, Any], where: str
    ) -> None:
        """Hold a loss and gradients by tensor to those of u [B, input features] and labels [B].

        Where the terms of a whole tensor cancel, what is left is held to a hundredth of the largest gradient of all.
        """
        pixels = convert.to_input(self.spec, u, input_scale=1.0).double()
        wanted = self.loss(pixels, torch.from_numpy(labels).long())
        wanted.backward()
        limit = bound(self.spec, len(u))
        assert loss == pytest.approx(wanted.item(), rel=limit), where
        gradients = self.gradients()
        assert found.keys() == gradients.keys()
        least = max(np.abs(expected).max() for expected in gradients.values()) / 100
        for name, expected in gradients.items():
            off = np.abs(found[name].reshape(expected.shape) - expected).max()
            share = off / max(np.abs(expected).max(), least)
            assert share <= limit, f"{where}, {name}: off by {share} of the largest, {share / limit} of the bound"


def maps_of(spec: ModelSpec) -> dict[str, tuple[int, int, int]]:
    """Give the map of every batch norm."""
    assert spec.residual is not None
    stem = spec.residual.stem
    maps = {stem.norm.name: stem.conv.out_map}
    if stem.second_norm is not None:
        maps[stem.second_norm.name] = stem.out_map
    for unit in spec.residual.units:
        maps[unit.norm.name] = unit.conv.out_map
        if unit.shortcut is not None:
            maps[unit.shortcut.norm.name] = unit.shortcut.conv.out_map
    return maps


@pytest.mark.parametrize("name", CASES)
def test_every_gradient_of_the_reference_is_autograds(name: str) -> None:
    spec, batch = CASES[name]
    state = start(spec, 1, dtype=np.float32)
    reference = PublishedResidualReference(spec, OPTIMIZERS["adam"], state)
    u, labels = random_batch(spec, batch, 0)

    loss, _ = reference.step(u, labels)

    outputs = {norm: values.x.reshape(batch, *maps_of(spec)[norm]) for norm, values in reference.norms.items()}
    betas = {f"{norm}.beta": values.beta_gradient for norm, values in reference.norms.items()}
    Oracle(spec, state, outputs).check(u, labels, loss, reference.gradients | betas, name)


class TorchAdam:
    """PyTorch's own Adam in float32, fed with the engine's gradients; binary weights are clipped."""

    def __init__(self, engine: Engine, state: State) -> None:
        config = engine.preset.optimizer
        tensors = [tensor for tensor in engine.spec.tensors if not tensor.is_statistic]
        self.latent = [tensor.name for tensor in tensors if tensor.role == "weight"]
        self.values = {tensor.name: torch.tensor(state[tensor.name]) for tensor in tensors}
        others = [values for name, values in self.values.items() if name not in self.latent]
        groups = [
            {"params": [self.values[name] for name in self.latent], "lr": config.step_size},
            {"params": others, "lr": config.beta_step_size},
        ]
        self.adam = torch.optim.Adam(groups, betas=(config.beta1, config.beta2), eps=config.epsilon)

    def step(self, gradients: dict[str, NDArray[Any]]) -> None:
        for name, values in self.values.items():
            values.grad = torch.from_numpy(gradients[name].reshape(values.shape).copy())
        self.adam.step()
        for name in self.latent:
            self.values[name].clamp_(-1, 1)


@pytest.mark.parametrize(
    ("spec", "batch"),
    [
        pytest.param(resnete18((16, 16, 3), (8, 16, 32), 4, 10), 8, id="small"),
        pytest.param(bireal18((64, 64, 3), (8, 12), 2, 5), 4, id="approx, max pool"),
        pytest.param(resnete18((32, 32, 3), classes=10), 4, id="cifar10", marks=pytest.mark.slow),
    ],
)
def test_twenty_steps_are_pytorchs(spec: ModelSpec, batch: int) -> None:
    engine = Engine(spec, batch_size=batch, preset=resolve_preset("standard"), seed=4, threads=2)
    state = start(spec, 1, dtype=np.float32)
    engine.load_state(without_statistics(state))
    adam, maps = TorchAdam(engine, state), maps_of(spec)
    entries = {e.name: e for e in engine.plan.entries}

    def floats(name: str) -> NDArray[np.float32]:
        entry = entries[name]
        return engine.arena[entry.offset : entry.offset + entry.num_bytes].view(np.float32)

    for step in range(STEPS):
        u, labels = random_batch(spec, batch, step)
        engine.input[:], engine.labels[:] = u, labels
        before = engine.state()

        loss = engine.step().loss

        outputs = {norm: floats(f"{norm}.output").reshape(batch, *shape) for norm, shape in maps.items()}
        gradients = {name: floats(f"{name}_gradient") for name in adam.values}
        Oracle(spec, before, outputs).check(u, labels, loss, gradients, f"step {step}")
        adam.step(gradients)
        after = engine.state()
        for name, values in adam.values.items():
            # Each of the two rounds a parameter of up to 4 and its step about ten times in every step.
            off = np.abs(after[name] - values.numpy()).max()
            assert off <= (step + 1) * 10 * UNIT * max(1.0, np.abs(after[name]).max()), f"step {step}, {name}: {off}"

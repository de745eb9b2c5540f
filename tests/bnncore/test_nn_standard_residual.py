"""Residual networks in plain PyTorch beside the native engine, whose steps its reference takes one by one.

Every unit is compared by itself, from the stream and the gradient that the engine has there: a sign next to 0 that
falls to the other side would carry two runs apart for good.

What the engine rounds to 8 bits at random is off by less than a unit, independently and without bias, so a sum of n
such errors stays within 3.8 sqrt(n) units but for one time in 10^12 (Hoeffding: 2 exp(-2 t^2 / n)).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from bnncore.engine import Engine
from bnncore.errors import ConfigurationError
from bnncore.optimizer import OPTIMIZERS, resolve_preset
from bnncore.reference import ResidualReference
from bnncore.spec import ModelSpec
from bnncore.state import State, without_statistics
from bnncore.zoo import mlp
from tests.bnncore.residual_cases import CASES, SMALL, random_batch, start

torch: Any = pytest.importorskip("torch")

from bnncore.nn import convert  # noqa: E402
from bnncore.nn.standard import StandardNetwork  # noqa: E402
from bnncore.nn.standard_residual import StandardResidualNetwork, standard_network  # noqa: E402
from bnncore.nn.trainer import StandardTrainer, prepare  # noqa: E402
from bnncore.nn.variants import VARIANTS, variants_for  # noqa: E402

UNIT = 1 / 512
"""Of the stream."""


def many(count: int) -> float:
    return 3.8 * math.sqrt(count) + 1e-3


def maps(values: Any, unit: float = 1.0) -> Any:
    """[B, H, W, C] of integers as float64 [B, C, H, W] with gradients."""
    return torch.tensor(np.asarray(values, np.float64) * unit).permute(0, 3, 1, 2).contiguous().requires_grad_()


def back(tensor: Any) -> Any:
    return tensor.detach().permute(0, 2, 3, 1).numpy()


def state_of(oracle: ResidualReference, spec: ModelSpec) -> State:
    state: State = {}
    for tensor in spec.tensors:
        layer, part = tensor.name.rsplit(".", 1)
        if tensor.role == "weight":
            state[tensor.name] = oracle.weights[layer].reshape(tensor.shape).astype(np.int8)
        elif not tensor.is_statistic:
            state[tensor.name] = oracle.norms[layer].beta.value if part == "beta" else oracle.real[tensor.name].value
    return state


def check_steps(spec: ModelSpec, batch: int, steps: int) -> None:
    engine = Engine(spec, batch_size=batch, preset=resolve_preset(), seed=2)
    engine.load_state(without_statistics(start(spec, 1)))
    reference = ResidualReference(spec, OPTIMIZERS["latent8"], start(spec, 1), seed=2)
    compared = 0
    for step in range(steps):
        network = StandardResidualNetwork(spec, "l1").double()
        network.load_state(state_of(reference, spec))
        u, labels = random_batch(spec, batch, step)
        engine.input[:], engine.labels[:] = u, labels

        trace = reference.step(u, labels)

        assert engine.step().loss == trace["loss"]
        assert engine.saturated == reference.saturated
        for unit, found in zip(network.network.units, trace["units"], strict=True):
            if not is_saturated(found):
                check_unit(network, unit, found)
                compared += 1
        check_head(network, trace, labels)
    assert compared >= 0.2 * steps * len(network.network.units)


def is_saturated(found: dict[str, Any]) -> bool:
    """Say whether a gradient has a number that may not have fitted its 8 bits, so that no bound holds."""
    names = ("grad_y", "grad_x", "shortcut_grad_y")
    return any(np.abs(found[name]).max() == 127 for name in names if name in found)


def check_unit(network: Any, unit: Any, found: dict[str, Any]) -> None:
    s = maps(found["s"], UNIT)
    network.zero_grad()

    out = network._unit(unit, s)

    grad_in = found["grad_in"] * float(found["grad_in_scale"])
    out.backward(maps(grad_in).detach())
    conv, unit_y = network.convolutions[unit.conv.name], float(found["grad_y_scale"])
    positions = found["y"].size // found["y"].shape[3]
    there = found["grad_weights"].reshape(unit.conv.weight_shape) * unit_y
    assert np.abs(there - back(conv.weight.grad)).max() <= many(positions) * unit_y
    # A number of the map is read by each kernel once at each of its places.
    slope = 1 if unit.sign.gradient == "clip" else 2
    error = float(found["grad_x_scale"]) * 1.001
    error += slope * many(unit.conv.kernel_height * unit.conv.kernel_width * unit.conv.out_channels) * unit_y
    if unit.shortcut is not None:
        error += check_shortcut(network, unit.shortcut, found, positions)
    assert np.abs(found["grad_x"] * float(found["grad_x_scale"]) - back(s.grad)).max() <= error


def check_shortcut(network: Any, shortcut: Any, found: dict[str, Any], positions: int) -> float:
    """Compare the gradient of its weights; give how far that of the stream may be off."""
    weight = network.convolutions[shortcut.conv.name].weight
    real = 2.0 ** -found["exponent"]
    unit_y = float(found["shortcut_grad_y_scale"]) / real
    pooled = back(maps(found["s"], UNIT))
    if shortcut.pool is not None:
        window = (shortcut.pool.pool_height, shortcut.pool.pool_width)
        pooled = back(torch.nn.functional.avg_pool2d(maps(found["s"], UNIT), window))
    there = found["shortcut_grad_weights"] * unit_y * UNIT
    # Each of the roundings is multiplied by what the weight reads, which itself is rounded to the stream's unit; and
    # the products, cut to units of their own, move the gradient of the norm by a hundredth of a unit of its 8 bits.
    gradient = np.abs(found["shortcut_grad_y"]).sum(axis=(0, 1, 2)).max() * unit_y
    error = many(positions) * unit_y * np.sqrt((pooled**2).mean(axis=(0, 1, 2)).max()) * 2 + UNIT / 2 * gradient
    assert np.abs(there - back(weight.grad)).max() <= error + 0.02 * unit_y * positions
    count = 1 if shortcut.pool is None else shortcut.pool.pool_height * shortcut.pool.pool_width
    largest = float(weight.detach().abs().max())
    stream: float = (many(weight.shape[0]) + 0.02 * weight.shape[0]) * unit_y * largest / count
    return stream


def check_head(network: Any, trace: dict[str, Any], labels: Any) -> None:
    s = maps(trace["s"], UNIT)
    features = (torch.relu(s) if network.network.head.relu is not None else s).mean(dim=(2, 3))
    network.dense.zero_grad()
    logits = network.dense(features)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels.astype(np.int64)))
    loss.backward()

    # float32 sums of as many terms as there are features, samples or classes.
    assert np.abs(trace["logits"] - logits.detach().numpy()).max() <= 1e-5 * float(logits.detach().abs().max())
    assert trace["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    wanted = network.dense.weight.grad.numpy()
    assert np.abs(trace["head"]["grad_weights"] - wanted).max() <= 1e-5 * np.abs(wanted).max()
    scale = float(trace["head"]["scale"])
    exact = np.clip(back(s.grad), -127 * scale, 127 * scale)
    assert np.abs(trace["head"]["grad"] * scale - exact).max() <= 1.001 * scale


@pytest.mark.parametrize("name", SMALL)
def test_twenty_steps_of_the_engine_have_the_gradients_of_the_oracle(name: str) -> None:
    check_steps(*SMALL[name], steps=20)


@pytest.mark.parametrize("name", CASES)
def test_so_have_the_edges(name: str) -> None:
    check_steps(*CASES[name], steps=6)


def by_hand(network: Any, x: Any) -> Any:
    """The network ``bare`` once more, in the formulas of its layers under l2."""

    def norm(y: Any, name: str) -> Any:
        variance, mean = torch.var_mean(y, dim=(0, 2, 3), keepdim=True, correction=0)
        return (y - mean) / variance.sqrt() + network.norms[name].beta[:, None, None]

    s = torch.relu(norm(torch.nn.functional.conv2d(x, network.convolutions["stem"].weight, padding=1), "stem_norm"))
    weight = torch.where(network.convolutions["c1"].weight < 0, -1.0, 1.0).double()
    s = s + norm(torch.nn.functional.conv2d(torch.where(s < 0, -1.0, 1.0).double(), weight, padding=1), "n1")
    return network.dense(s.mean(dim=(2, 3)))


def test_under_l2_it_is_algorithm_1() -> None:
    spec, batch = CASES["bare"]
    network = StandardResidualNetwork(spec, epsilon=1e-30).double()
    network.load_state(start(spec, 3))
    u, _ = random_batch(spec, batch, 0)
    x = convert.to_input(spec, u).double()

    assert torch.allclose(network(x), by_hand(network, x), rtol=1e-12)


@pytest.mark.parametrize("name", SMALL)
def test_it_learns_in_every_variant(name: str) -> None:
    spec, batch = SMALL[name]
    x, labels = random_batch(spec, batch, 0)
    for variant in variants_for(spec):
        if not variant.compiled:
            trainer = StandardTrainer(spec, variant, step_size=1e-2)
            prepared = prepare(spec, variant, x, labels)
            losses = [trainer.step(*prepared) for _ in range(15)]
            assert losses[-1] < 0.5 * losses[0]
    assert len(variants_for(spec)) == len(VARIANTS)


def test_gradients_have_the_names_and_shapes_of_a_state() -> None:
    spec, batch = CASES["odd"]
    network = StandardResidualNetwork(spec)
    u, labels = random_batch(spec, batch, 0)

    network.loss(convert.to_input(spec, u), torch.from_numpy(labels).long()).backward()

    shapes = {tensor.name: tensor.shape for tensor in spec.tensors if not tensor.is_statistic}
    assert {name: grad.shape for name, grad in network.gradients().items()} == shapes
    assert list(network.gradients()) == list(shapes)


def test_there_is_an_oracle_for_every_network_and_no_published_one_for_residual_ones() -> None:
    assert isinstance(standard_network(mlp(), "paper"), StandardNetwork)
    with pytest.raises(ConfigurationError, match="Algorithm 2 is about chains"):
        standard_network(CASES["bare"][0], "paper")

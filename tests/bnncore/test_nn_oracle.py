"""Three programs from one start: the native engine, bnncore.nn, and the algorithms in plain PyTorch.

Every one of 50 steps begins in the engine's state, so that each is compared by itself: a sign next to 0 that falls to
the other side would carry two runs apart for good, and then nothing could be said of what follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bnncore.bench.samples import make_batches
from bnncore.engine import Engine
from bnncore.optimizer import Preset, resolve_preset
from bnncore.spec import ModelSpec
from bnncore.zoo import binarynet, cnv, mlp, sensor1d

torch: Any = pytest.importorskip("torch")

from bnncore.nn import convert  # noqa: E402
from bnncore.nn.standard import StandardNetwork  # noqa: E402
from tests.bnncore.engine_cases import gradients  # noqa: E402

SMALL = [
    mlp(input_shape=(6, 5), widths=(16, 16), classes=3),
    cnv(input_shape=(12, 12, 3), widths=(8, 16), convs_per_stage=1, dense_widths=(16,), classes=3),
    binarynet(input_shape=(8, 8, 2), widths=(8, 16), convs_per_stage=1, dense_widths=(16,), classes=3),
    sensor1d(input_shape=(16, 3), widths=(8, 8), kernel=3, dense_widths=(8,), classes=3),
]
STEPS, BATCH = 50, 40
Batch = tuple[NDArray[np.uint8], NDArray[np.int32]]


def start(spec: ModelSpec, preset: Preset) -> Engine:
    """Make an engine with random shifts: with a shift of 0 a number may be exactly at its channel's mean."""
    engine = Engine(spec, batch_size=BATCH, preset=preset, seed=1)
    state = {name: array for name, array in engine.state().items() if "mean" not in name}
    generator = np.random.default_rng(0)
    for name, array in state.items():
        if name.endswith(".beta"):
            state[name] = generator.normal(0, 0.3, array.shape).astype(np.float32)
    engine.load_state(state)
    return engine


def batches(spec: ModelSpec, engine: Engine) -> Iterator[Batch]:
    for samples, labels in make_batches(spec, batch_size=BATCH, count=STEPS):
        engine.input[:], engine.labels[:] = samples, labels
        yield samples, labels


def in_spec_order(network: Any, spec: ModelSpec) -> list[NDArray[Any]]:
    """Give the gradients of the weights of a bnncore.nn network as a state would have them: [N, K] of each block."""
    for layer in network:
        if hasattr(layer, "geometry"):
            layer.weight.data.copy_(layer.weight.grad / (largest := layer.weight.grad.abs().max()))
            layer.weight.grad.fill_(largest)
    state = convert.state_of(network, spec)
    layers = [layer for layer in network if hasattr(layer, "geometry")]
    return [
        state[f"{block.linear}.weight"].reshape(block.out_channels, -1) * float(layer.weight.grad.flatten()[0])
        for block, layer in zip(spec.blocks, layers, strict=True)
    ]


@pytest.mark.parametrize("spec", SMALL, ids=lambda spec: spec.name)
def test_algorithm_1_has_the_gradients_of_the_preset_standard(spec: ModelSpec) -> None:
    engine = start(spec, resolve_preset("standard"))

    for samples, labels in batches(spec, engine):
        network = StandardNetwork(spec).double()
        network.load_state(engine.state())
        loss = network.loss(convert.to_input(spec, samples, input_scale=1.0).double(), torch.from_numpy(labels).long())
        loss.backward()

        # float32 rounds each of the few thousand terms of a sum to 6e-8 of it; variances have an addend of 1e-5 there.
        assert engine.step().loss == pytest.approx(loss.item(), rel=1e-5)
        for i, block in enumerate(network.blocks):
            grad_weight, grad_beta = gradients(engine, i)
            wanted = block.weight.grad.permute(0, 2, 3, 1) if block.block.is_conv else block.weight.grad
            for found, expected in ((grad_weight, wanted), (grad_beta, block.beta.grad)):
                expected = expected.reshape(found.shape).numpy()
                assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("spec", SMALL, ids=lambda spec: spec.name)
def test_the_layers_have_the_gradients_of_the_oracle(spec: ModelSpec) -> None:
    engine = start(spec, resolve_preset("bitfleet"))

    for samples, labels in batches(spec, engine):
        x, y = convert.to_input(spec, samples, input_scale=1.0).double(), torch.from_numpy(labels).long()
        oracle = StandardNetwork(spec, "l1").double()
        oracle.load_state(engine.state())
        wanted = oracle.loss(x, y)
        wanted.backward()
        network = convert.network(spec, engine.state(), input_scale=1.0).double()
        loss = torch.nn.functional.cross_entropy(network(x), y)
        loss.backward()
        engine.step()

        assert loss.item() == pytest.approx(wanted.item(), rel=1e-12)
        for found, block in zip(in_spec_order(network.float(), spec), oracle.blocks, strict=True):
            expected = block.weight.grad.permute(0, 2, 3, 1) if block.block.is_conv else block.weight.grad
            expected = expected.reshape(found.shape).numpy()
            # In float64, but handed on in float32.
            assert np.abs(found - expected).max() <= 2e-7 * np.abs(expected).max()


@pytest.mark.parametrize("optimizer", ["latent8", "adam"])
@pytest.mark.parametrize("spec", SMALL, ids=lambda spec: spec.name)
def test_the_layers_run_forward_as_the_engine_does_bit_for_bit(spec: ModelSpec, optimizer: str) -> None:
    engine = start(spec, resolve_preset("bitfleet", optimizer))

    for step, (samples, labels) in enumerate(batches(spec, engine)):
        network = convert.network(spec, engine.state())
        for name, buffer in network.named_buffers():
            if name.endswith("num_batches_tracked"):
                buffer.fill_(step)
        logits = network(convert.to_input(spec, samples))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels).long())
        loss.backward()
        trace = engine.step_traced()

        assert np.array_equal(logits.detach().numpy(), trace["logits"])
        there, here = engine.state(), convert.state_of(network, spec)
        for block in spec.blocks:
            for statistic in ("mean", "mean_abs_dev"):
                name = f"{block.norm}.{statistic}"
                assert np.array_equal(here[name], there[name]), (step, name)
        check_gradients(network, spec, trace)


def check_gradients(network: Any, spec: ModelSpec, trace: dict[str, Any]) -> None:
    """The engine rounds a gradient to 8 bits twice in each block, at random, and so without bias.

    A unit is 1 / 100 of the largest gradient, so the noise of few numbers turns a sum by a few tenths at the very most;
    at the top, where one rounding lies above another, each number is off by one unit of each at most.
    """
    for i, found in enumerate(in_spec_order(network, spec)):
        block, quantised = trace["blocks"][i], trace["blocks"][i]["grad_weights"].reshape(found.shape).astype(float)
        cosine = (found * quantised).sum() / np.sqrt((found**2).sum() * (quantised**2).sum())
        assert cosine > 0.9, spec.blocks[i].linear
        if spec.blocks[i].is_last:
            psi = block["sums"][:, 1] / BATCH**2
            # A unit of the gradient above moves dY by at most 1 / psi, and by the two means as much again each.
            unit = float(block["grad_y_scale"]) + 4 * float(block["grad_in_scale"]) / psi
            assert (np.abs(quantised * float(block["grad_y_scale"]) - found).max(axis=1) <= BATCH * unit).all()


def test_algorithm_2_has_the_gradient_of_the_article() -> None:
    spec = mlp(input_shape=(6, 5), widths=(16,), classes=3)
    network = StandardNetwork(spec, "paper").double()
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(network.blocks[0].beta, generator=generator)
    x = torch.randn(11, 30, generator=generator, dtype=torch.float64)
    y: list[Any] = []
    handed_down: list[Any] = []
    block = network.blocks[0]
    normalise = block._normalise

    def watch(products: Any) -> Any:
        products.retain_grad()
        y.append(products)
        out = normalise(products)
        out.register_hook(handed_down.append)
        return out

    block._normalise = watch
    network.loss(x, torch.arange(11) % 3).backward()

    products, grad = y[0].detach(), handed_down[0]
    psi = (products - products.mean(0)).abs().mean(0)
    above = (products - products.mean(0)) / psi + block.beta.detach()
    signs, omega, v = torch.where(above < 0, -1.0, 1.0).double(), above.abs().mean(0), grad / psi
    expected = v - v.mean(0) - signs * (v * signs * omega).mean(0)
    assert torch.allclose(y[0].grad, expected, rtol=1e-12, atol=1e-15)
    assert torch.equal(block.weight.grad, torch.where((expected.t() @ x) < 0, -1.0, 1.0).double())


def test_the_published_gradient_is_not_the_exact_one() -> None:
    spec = mlp(input_shape=(6, 5), widths=(16,), classes=3)
    exact, paper = StandardNetwork(spec, "l1"), StandardNetwork(spec, "paper")
    paper.load_state_dict(exact.state_dict())
    x, labels = torch.randn(30, 30), torch.arange(30) % 3

    for network in (exact, paper):
        network.loss(x, labels).backward()

    assert torch.equal(exact.loss(x, labels), paper.loss(x, labels))
    assert set(paper.blocks[0].weight.grad.unique().tolist()) == {-1.0, 1.0}
    assert not torch.allclose(exact.blocks[0].beta.grad, paper.blocks[0].beta.grad)

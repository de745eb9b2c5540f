"""Residual networks in PyTorch: the engine's bits forward, the oracle's gradients backward, and what is kept."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

from bnncore.engine import Engine
from bnncore.optimizer import OPTIMIZERS, resolve_preset
from bnncore.reference import ResidualReference
from bnncore.spec import ModelSpec
from bnncore.state import without_statistics
from bnncore.zoo import resnete18
from tests.bnncore.residual_cases import CASES, SMALL, random_batch, start

torch: Any = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from bnncore.nn import BinaryConv2d, BinarySign, L1BatchNorm2d, Residual, Sequential, convert, zoo  # noqa: E402
from bnncore.nn.residual import terms_at  # noqa: E402
from bnncore.nn.shortcut import channel_means  # noqa: E402
from bnncore.nn.standard_residual import StandardResidualNetwork  # noqa: E402
from bnncore.nn.stream import sample_units, stream_limit  # noqa: E402
from bnncore.nn.tensors import places_of  # noqa: E402
from tests.bnncore.nn_cases import gradients_of, kept_bytes  # noqa: E402

ALL = {**CASES, **SMALL}


def gradients(network: Any, spec: ModelSpec) -> dict[str, Any]:
    """Give the gradients of a network under the names, and in the shapes, of a state's tensors."""
    found = {}
    for place in places_of(network, spec):
        if not place.tensor.is_statistic:
            parameter = place.module.bias if place.tensor.role in ("beta", "bias") else place.module.weight
            grad = parameter.grad
            found[place.tensor.name] = (grad.permute(0, 2, 3, 1) if grad.dim() == 4 else grad).numpy()
    return found


def loss_of(network: Any, x: Any, labels: Any) -> Any:
    return nn.functional.cross_entropy(network(x), torch.from_numpy(labels).long())


def at_step(network: Any, step: int) -> Any:
    """Count the batches that a network has seen: the share of the next in its statistics follows from it."""
    for name, buffer in network.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.fill_(step)
    return network


@pytest.mark.parametrize(("name", "optimizer"), [("resnete18", "latent8"), ("bireal18", "adam")])
def test_fifty_steps_run_forward_as_the_engines_do_bit_for_bit(name: str, optimizer: str) -> None:
    spec, batch = SMALL[name]
    engine = Engine(spec, batch_size=batch, preset=resolve_preset("bitfleet", optimizer), seed=1)
    for step in range(50):
        network = at_step(convert.network(spec, engine.state()), step)
        u, labels = random_batch(spec, batch, step)
        engine.input[:], engine.labels[:] = u, labels

        loss = loss_of(network, convert.to_input(spec, u), labels)

        # The head adds in float32, in another order: 16 features, 10 classes.
        assert engine.step().loss == pytest.approx(loss.item(), rel=1e-5)
        there, here = engine.state(), convert.state_of(network, spec)
        for tensor in spec.tensors:
            if tensor.is_statistic:
                assert np.array_equal(here[tensor.name], there[tensor.name]), (step, tensor.name)


@pytest.mark.parametrize("scale", [1.0, 1 / 256])
@pytest.mark.parametrize("name", CASES)
def test_the_edges_run_forward_as_the_engine_does(name: str, scale: float) -> None:
    spec, batch = CASES[name]
    engine = Engine(spec, batch_size=batch, preset=resolve_preset())
    engine.load_state(without_statistics(start(spec, 1)))
    network = convert.network(spec, without_statistics(start(spec, 1)), input_scale=scale)
    u, labels = random_batch(spec, batch, 0)
    engine.input[:], engine.labels[:] = u, labels

    loss = loss_of(network, convert.to_input(spec, u, input_scale=scale), labels)
    here = convert.state_of(network, spec, input_scale=scale)

    assert engine.step().loss == pytest.approx(loss.item(), rel=1e-5)
    for tensor in spec.tensors:
        if tensor.is_statistic:
            assert np.array_equal(here[tensor.name], engine.state()[tensor.name]), tensor.name


def test_numbers_that_do_not_fit_the_stream_are_kept_within_it_as_in_the_engine() -> None:
    spec, batch = CASES["max pool"]
    state = start(spec, 1)
    state["norm1.beta"][:] = [20, -20, 0, 0]
    state["stem_norm1.beta"][0] = 70
    engine = Engine(spec, batch_size=batch, preset=resolve_preset())
    engine.load_state(without_statistics(state))
    network = convert.network(spec, without_statistics(state))
    u, labels = random_batch(spec, batch, 0)
    engine.input[:], engine.labels[:] = u, labels

    loss = loss_of(network, convert.to_input(spec, u), labels)

    assert engine.step().loss == pytest.approx(loss.item(), rel=1e-5)
    assert engine.saturated
    for name, values in convert.state_of(network, spec).items():
        if "mean" in name:
            assert np.array_equal(values, engine.state()[name]), name


@pytest.mark.parametrize("name", [*CASES, *SMALL])
def test_what_is_trained_here_is_what_the_engine_predicts(name: str) -> None:
    spec, batch = ALL[name]
    network = convert.network(spec, without_statistics(start(spec, 1)))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for step in range(3):
        u, labels = random_batch(spec, batch, step)
        optimizer.zero_grad()
        loss_of(network, convert.to_input(spec, u), labels).backward()
        optimizer.step()
    engine = Engine(spec, batch_size=batch, preset=resolve_preset())
    engine.load_state(convert.state_of(network, spec, dtype=np.int8))
    engine.input[:], engine.labels[:] = random_batch(spec, batch, 9)

    with torch.no_grad():
        logits = network.eval()(convert.to_input(spec, engine.input))

    assert np.array_equal(logits.argmax(1).numpy(), engine.predict_batch(batch))
    labels = torch.from_numpy(engine.labels.copy()).long()
    assert engine.evaluate_batch(batch).loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), 1e-5)


@pytest.mark.parametrize("name", ALL)
def test_in_float64_gradients_are_the_oracles(name: str) -> None:
    spec, batch = ALL[name]
    for step in range(3):
        state, (u, labels) = start(spec, step), random_batch(spec, batch, step)
        x = convert.to_input(spec, u).double()
        oracle = StandardResidualNetwork(spec, "l1").double()
        oracle.load_state(state)
        wanted = oracle.loss(x, torch.from_numpy(labels).long())
        wanted.backward()
        network = convert.network(spec, without_statistics(state)).double()
        loss = loss_of(network, x, labels)
        loss.backward()

        assert loss.item() == pytest.approx(wanted.item(), rel=1e-12)
        for key, expected in oracle.gradients().items():
            found = gradients(network, spec)[key]
            # Behind the last norm of a network without ReLU a gradient is 0 but for rounding.
            assert np.abs(found - expected).max() <= 1e-11 * np.abs(expected).max() + 1e-15, key


@pytest.mark.parametrize("name", SMALL)
def test_gradients_are_the_engines_but_for_its_rounding(name: str) -> None:
    """The engine rounds each gradient to 8 bits at random, without bias: every layer's points the same way.

    A unit is 1 / 100 of the largest, and each of 16 units above rounds twice.
    """
    spec, batch = SMALL[name]
    reference = ResidualReference(spec, OPTIMIZERS["latent8"], start(spec, 1), seed=2)
    network = convert.network(spec, without_statistics(start(spec, 1)))
    u, labels = random_batch(spec, batch, 0)
    loss_of(network, convert.to_input(spec, u), labels).backward()

    trace = reference.step(u, labels)

    here = gradients(network, spec)
    assert spec.residual is not None
    for number, (unit, found) in enumerate(zip(spec.residual.units, trace["units"], strict=True)):
        there = found["grad_weights"].reshape(unit.conv.weight_shape).astype(float)
        grad = here[f"{unit.conv.name}.weight"]
        cosine = (there * grad).sum() / math.sqrt((there**2).sum() * (grad**2).sum())
        assert cosine > 0.9, unit.name
        if number == len(spec.residual.units) - 1:
            # One rounding lies above the last unit, and one in it: a weight reads each of them at every position.
            unit_y = float(found["grad_y_scale"])
            psi = found["y"].reshape(-1, found["y"].shape[3])
            psi = np.abs(psi - psi.mean(axis=0)).mean(axis=0)
            above = 4 * float(found["grad_in_scale"]) / psi  # by 1 / psi, and by the two means as much again each
            bound = batch * unit.conv.out_height * unit.conv.out_width * (unit_y + above)
            assert (np.abs(there * unit_y - grad).max(axis=(1, 2, 3)) <= bound).all()
    expected = trace["head"]["grad_weights"]
    assert np.abs(here["dense.weight"] - expected).max() <= 1e-5 * np.abs(expected).max()


def make_unit(gradient: str, *, halves: bool, channels: int = 6) -> Any:
    torch.manual_seed(0)
    out = 9 if halves else channels
    body = [BinarySign(gradient), BinaryConv2d(channels, out, 3, 2 if halves else 1, 1), L1BatchNorm2d(out)]
    shortcut = [nn.AvgPool2d(2), nn.Conv2d(channels, out, 1, bias=False), L1BatchNorm2d(out)] if halves else None
    unit = Residual(body, shortcut)
    for module in unit.modules():
        if isinstance(module, L1BatchNorm2d):
            nn.init.normal_(module.bias, std=0.3)
        if isinstance(module, nn.Conv2d):
            module.weight.data.mul_(2**10).round_().div_(2**10)  # in fixed point as they are
    return unit


def stream(*shape: int) -> Any:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 400).round() / 512


@pytest.mark.parametrize("gradient", ["clip", "approx"])
@pytest.mark.parametrize("halves", [False, True])
def test_a_unit_in_float32_has_the_gradients_of_float64(gradient: str, halves: bool) -> None:
    unit, x = make_unit(gradient, halves=halves), stream(5, 6, 8, 8)
    x = (x * 128).round() / 128  # the mean of four has nothing to round
    doubled = copy.deepcopy(unit).double()

    out, grads = gradients_of(Sequential(unit), [unit], x)

    wanted, wanted_grads = gradients_of(doubled, [doubled], x.double())
    # Each way is rounded once, and the products of a shortcut are cut below 2^-11 of their deviation.
    assert (out - wanted).abs().max() <= (1 / 512 + 2**-11 if halves else 0.5 / 512) * 1.001
    assert torch.equal(out * 512, (out * 512).round())
    for found, expected in zip(grads, wanted_grads, strict=True):
        # A sum of at most some hundred rounded terms; a cut moves the norm's means by no more than it moves x.
        assert (found - expected).abs().max() <= (2e-5 + (2**-11 if halves else 0)) * expected.abs().max()


def test_the_surrogate_of_bi_real_is_its_polynomial() -> None:
    x = torch.tensor([-1.5, -1.0, -0.5, -0.0, 0.0, 0.25, 1.0, 2.0], requires_grad=True)

    signs = BinarySign("approx")(x)
    signs.backward(torch.full_like(x, 3.0))

    assert signs.tolist() == [-1, -1, -1, 1, 1, 1, 1, 1]
    assert x.grad.tolist() == [0, 0, 3, 6, 6, 4.5, 0, 0]
    with pytest.raises(ValueError, match=r"gradient must be one of \['clip', 'approx'\], got 'soft'"):
        BinarySign("soft")


@pytest.mark.parametrize(("name", "bits"), [("resnete18", 2), ("bireal18", 11)])
def test_what_is_kept_is_counted_in_bits(name: str, bits: int) -> None:
    spec, batch = SMALL[name]
    network, plain = convert.network(spec), StandardResidualNetwork(spec)
    x = convert.to_input(spec, random_batch(spec, batch, 0)[0])

    kept = kept_bytes(network, x)

    residual = spec.residual
    assert residual is not None
    numbers = sum(math.prod(unit.conv.in_map) for unit in residual.units) * batch
    pooled = sum(math.prod(unit.shortcut.conv.in_map) for unit in residual.units if unit.shortcut) * batch
    channels = sum(2 * 8 * norm.features for norm in residual.norms)
    relu = batch * math.prod(residual.units[-1].conv.out_map) // 8
    # PyTorch's linear layer: what it reads, and its weights transposed.
    head = 4 * residual.head.dense.in_features * (batch + spec.classes)
    assert kept == x.nbytes + numbers * bits // 8 + 2 * pooled + channels + relu + head
    if name == "resnete18":
        assert kept_bytes(plain, x) > 15 * kept  # of maps as small as these, the channels' numbers weigh


def test_without_gradients_nothing_is_kept() -> None:
    spec, batch = SMALL["resnete18"]

    with torch.no_grad():
        assert kept_bytes(convert.network(spec), convert.to_input(spec, random_batch(spec, batch, 0)[0])) == 0


@pytest.mark.parametrize("name", ALL)
def test_modules_one_by_one_differ_by_the_streams_rounding_alone(name: str) -> None:
    spec, batch = ALL[name]
    network = convert.network(spec, start(spec, 2)).double().eval()
    x = convert.to_input(spec, random_batch(spec, batch, 0)[0]).double()

    with torch.no_grad():
        assert torch.allclose(network(x), nn.Sequential(*network)(x), rtol=1e-12, atol=1e-12)


def test_a_module_with_hooks_is_called() -> None:
    spec, batch = SMALL["resnete18"]
    network, seen = convert.network(spec), []
    x = convert.to_input(spec, random_batch(spec, batch, 0)[0])
    wanted = network(x)
    for path in ("stem_relu", "unit2", "unit5.shortcut.shortcut5_conv", "unit6.body.norm6", "pool"):
        network.get_submodule(path).register_forward_hook(lambda module, inputs, output: seen.append(type(module)))

    out = network(x)

    assert seen == [nn.ReLU, Residual, nn.Conv2d, L1BatchNorm2d, nn.AvgPool2d]
    assert out.shape == wanted.shape


def test_other_bodies_and_shortcuts_are_run_as_they_are() -> None:
    torch.manual_seed(0)
    body = OrderedDict(a=BinarySign(), b=BinaryConv2d(3, 3, 3, padding=1), c=L1BatchNorm2d(3), d=nn.ReLU())
    layer = Residual(nn.Sequential(body), [nn.Identity()])
    x = torch.randn(2, 3, 5, 5)

    assert torch.equal(Sequential(layer)(x), x + nn.Sequential(body)(x))


def test_terms_of_a_stream_are_counted_between_shortcuts() -> None:
    plain = [make_unit("clip", halves=False) for _ in range(4)]
    halving = [make_unit("clip", halves=True) for _ in range(2)]
    modules = [nn.ReLU(), *plain[:2], halving[0], plain[2], halving[1], nn.ReLU(), plain[3]]

    assert [terms_at(modules, position) for position in (0, 1, 2, 3, 4, 5, 7)] == [3, 3, 3, 3, 3, 2, 2]
    assert [terms_at(plain[:2], position) for position in (0, 1)] == [3, 3]
    assert stream_limit(3) == 32767 // 3


def test_samples_are_known_by_their_values() -> None:
    u = torch.arange(256).float() * 2 - 255

    assert sample_units(u) == 1
    assert sample_units(u / 256) == 256
    assert sample_units(u / 255) is sample_units(u * 2) is sample_units(u.double()) is None


@pytest.mark.parametrize("is_positive", [False, True])
def test_means_of_channels_have_the_gradient_that_autograd_finds(is_positive: bool) -> None:
    x = stream(3, 4, 5, 2)

    out, (grad,) = gradients_of(lambda x: channel_means(x, is_positive=is_positive), [], x)

    def plain(x: Any) -> Any:
        return (x.clamp(min=0) if is_positive else x).mean((2, 3), keepdim=True)

    wanted, (expected,) = gradients_of(plain, [], x.double())
    assert torch.allclose(out.double(), wanted, rtol=1e-6)
    assert torch.allclose(grad.double(), expected, rtol=1e-6)


def test_under_mixed_precision_it_runs_forward_the_same() -> None:
    spec, batch = SMALL["resnete18"]
    network = Sequential(*list(convert.network(spec))[:-1])
    x = convert.to_input(spec, random_batch(spec, batch, 0)[0])

    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(x)

    assert torch.equal(out, network(x))
    out.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_it_learns() -> None:
    generator = np.random.default_rng(5)
    spec = resnete18((8, 8), (16, 32), 2, 4)
    patterns = generator.integers(0, 256, (4, 64))
    torch.manual_seed(0)
    network = zoo.resnete18(input_shape=(8, 8), widths=(16, 32), convs_per_stage=2, classes=4)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        labels = generator.integers(0, 4, 64)
        noisy = np.clip(patterns[labels] + generator.normal(0, 60, (64, 64)), 0, 255).astype(np.uint8)
        optimizer.zero_grad()
        loss = loss_of(network, convert.to_input(spec, noisy), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert np.mean(losses[-5:]) < 0.3 * losses[0]

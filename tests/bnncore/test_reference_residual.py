"""The residual oracle against autograd in float64: every gradient but for its rounding to 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bnncore.optimizer import OPTIMIZERS
from bnncore.reference.residual import ResidualReference
from bnncore.residual import ResidualNetwork
from tests.bnncore.residual_cases import CASES, random_batch, start

torch = pytest.importorskip("torch")

from torch.autograd import Function  # noqa: E402

UNIT = 1 / 512
"""Of the stream."""


def maps(values: Any, unit: float = 1.0) -> Any:
    """[B, H, W, C] of integers as float64 [B, C, H, W] with gradients."""
    tensor = torch.tensor(np.asarray(values, np.float64) * unit).permute(0, 3, 1, 2).contiguous()
    return tensor.requires_grad_()


def kernels(values: Any) -> Any:
    """[N, height, width, C] as float64 [N, C, height, width] with gradients."""
    return torch.tensor(np.asarray(values, np.float64)).permute(0, 3, 1, 2).contiguous().requires_grad_()


def back(tensor: Any) -> Any:
    """[B, C, H, W] as [B, H, W, C]."""
    return tensor.detach().permute(0, 2, 3, 1).numpy()


def norm(y: Any, beta: Any) -> Any:
    """L1 batch norm, whose derivative is autograd's."""
    centred = y - y.mean(dim=(0, 2, 3), keepdim=True)
    deviation = centred.abs().mean(dim=(0, 2, 3), keepdim=True)
    alive = deviation > 0
    return torch.where(alive, centred / torch.where(alive, deviation, 1), 0) + beta[None, :, None, None]


class Clip(Function):  # type: ignore[misc]
    """Sign, whose gradient passes where |x| <= 1."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return torch.where(x < 0, -1.0, 1.0).double()

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= 1)


class Approx(Clip):
    """Sign, whose gradient is that of Bi-Real's polynomial: 2 + 2x on [-1, 0), 2 - 2x on [0, 1)."""

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        (x,) = ctx.saved_tensors
        return grad * torch.where(x < 0, 2 + 2 * x, 2 - 2 * x).clamp(min=0)


SIGNS = {"clip": Clip, "approx": Approx}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("steps", [1, 3])
def test_every_gradient_is_autograds_but_for_the_rounding(name: str, steps: int) -> None:
    spec, batch = CASES[name]
    state = start(spec, 1)
    oracle = ResidualReference(spec, OPTIMIZERS["latent8"], state, seed=2)
    for seed in range(steps - 1):
        oracle.step(*random_batch(spec, batch, seed))
    betas = {key: torch.tensor(found.beta.value.astype(np.float64)) for key, found in oracle.norms.items()}
    real = {key: found.value.copy() for key, found in oracle.real.items()}
    binary = {key: np.where(w < 0, -1.0, 1.0) for key, w in oracle.weights.items()}
    u, labels = random_batch(spec, batch, 100)

    step = oracle.step(u, labels)

    network = spec.residual
    assert network is not None
    check_head(network, step, real, labels)
    for unit, trace in zip(network.units, step["units"], strict=True):
        check_unit(unit, trace, betas, real, binary)
    check_stem(network, step["stem"], betas, real, u)


def near(rounded: Any, unit: float, exact: Any) -> None:
    """Stochastic rounding goes to a neighbour, less than a unit away; float32 adds a few times 2^-24 of 127 units."""
    assert np.abs(rounded).max() <= 127
    exact = np.clip(exact, -127 * unit, 127 * unit)
    assert np.abs(rounded * float(unit) - exact).max() < float(unit) * 1.001


def check_head(network: ResidualNetwork, step: dict[str, Any], real: dict[str, Any], labels: Any) -> None:
    dense = network.head.dense.name
    last = step["units"][-1]
    s = maps(step["s"], UNIT)
    assert last["y"].shape[0] == len(labels)
    pooled = (torch.relu(s) if network.head.relu is not None else s).mean(dim=(2, 3))
    weights = torch.tensor(real[f"{dense}.weight"].astype(np.float64), requires_grad=True)
    logits = pooled @ weights.T + torch.tensor(real[f"{dense}.bias"].astype(np.float64))
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels.astype(np.int64)))
    loss.backward()

    assert np.allclose(step["logits"], logits.detach().numpy(), rtol=1e-5, atol=1e-5)
    assert step["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert np.allclose(step["head"]["grad_weights"], weights.grad.numpy(), rtol=1e-4, atol=1e-6)
    near(step["head"]["grad"], step["head"]["scale"], back(s.grad))


def check_unit(unit: Any, trace: dict[str, Any], betas: Any, real: Any, binary: Any) -> None:
    s = maps(trace["s"], UNIT)
    weights = kernels(binary[unit.conv.name].reshape(unit.conv.weight_shape))
    padding = (unit.conv.pad_height, unit.conv.pad_width)
    y = torch.nn.functional.conv2d(SIGNS[unit.sign.gradient].apply(s), weights, None, unit.conv.stride, padding)
    y.retain_grad()
    grad_out = maps(trace["grad_in"], float(trace["grad_in_scale"])).detach()
    norm(y, betas[unit.norm.name]).backward(grad_out, retain_graph=True)

    assert np.array_equal(trace["y"], back(y))
    near(trace["grad_y"], trace["grad_y_scale"], back(y.grad))
    # From here on with the gradient as it was rounded: the products are exact.
    s.grad = weights.grad = None
    y.backward(maps(trace["grad_y"], float(trace["grad_y_scale"])).detach())
    assert np.allclose(trace["grad_weights"] * float(trace["grad_y_scale"]), back(weights.grad), rtol=1e-9, atol=1e-12)
    way = grad_out
    if unit.shortcut is not None:
        pool, conv = unit.shortcut.pool, unit.shortcut.conv
        t = maps(trace["s"], UNIT)
        window = (pool.pool_height, pool.pool_width) if pool is not None else (1, 1)
        pooled = torch.nn.functional.avg_pool2d(t, window)
        real_weights = kernels(real[f"{conv.name}.weight"])
        z = torch.nn.functional.conv2d(pooled, real_weights)
        z.retain_grad()
        norm(z, betas[unit.shortcut.norm.name]).backward(grad_out, retain_graph=True)
        # Pools round to the stream's unit, weights to 14 bits, and y is cut to units of its own.
        unit_z = 2.0 ** -trace["exponent"]
        error = unit_z + UNIT / 2 * np.abs(real[f"{conv.name}.weight"]).sum(axis=(1, 2, 3)).max()
        error += 2.0**-14 * np.abs(real[f"{conv.name}.weight"]).max() * np.abs(back(pooled)).sum(axis=3).max()
        assert np.abs(trace["shortcut_y"] * unit_z - back(z)).max() <= error
        t.grad = real_weights.grad = None
        grad_z = trace["shortcut_grad_y"] * float(trace["shortcut_grad_y_scale"]) / unit_z
        z.backward(maps(grad_z).detach())
        way = t.grad
        scale_of = np.abs(grad_z).sum(axis=(0, 1, 2))[:, None, None, None]
        found = trace["shortcut_grad_weights"] * float(trace["shortcut_grad_y_scale"]) / unit_z * UNIT
        assert (np.abs(found - back(real_weights.grad)) <= UNIT / 2 * scale_of + 1e-9).all()
    exact = back(s.grad + way)
    near(trace["grad_x"], trace["grad_x_scale"], exact)


def check_stem(network: ResidualNetwork, trace: dict[str, Any], betas: Any, real: Any, u: Any) -> None:
    stem, conv = network.stem, network.stem.conv
    x = maps((2.0 * u - 255.0).reshape(len(u), *conv.in_map)).detach()
    weights = kernels(real[f"{conv.name}.weight"])
    z = torch.nn.functional.conv2d(x, weights, None, conv.stride, (conv.pad_height, conv.pad_width))
    unit = 2.0 ** (trace["fixed"].shift - trace["fixed"].exponent)
    assert np.abs(trace["y"] * unit - back(z)).max() <= unit + 255 * conv.fan_in * 2.0 ** -trace["fixed"].exponent

    # Again from the engine's integers, so that both choose the same arg-maxima.
    y = maps(trace["y"])
    normalised = norm(y, betas[stem.norm.name])
    a = maps(back(normalised))
    pooled = torch.relu(a) if stem.relu is not None else a
    if stem.pool is not None:
        window, pads = (stem.pool.pool_height, stem.pool.pool_width), stem.pool.pads
        pooled = torch.nn.functional.max_pool2d(pooled, window, stem.pool.strides, pads)
    assert np.abs(trace["inner"] * UNIT - np.clip(back(pooled), -64, 64)).max() <= UNIT * 0.501
    grad_out = maps(trace["grad_in"], float(trace["grad_in_scale"])).detach()
    grad_inner = grad_out
    if stem.second_norm is not None:
        inner = maps(trace["inner"], UNIT)
        norm(inner, betas[stem.second_norm.name]).backward(grad_out)
        near(trace["grad_inner"], trace["grad_inner_scale"], back(inner.grad))
        grad_inner = maps(trace["grad_inner"], float(trace["grad_inner_scale"])).detach()
    if stem.relu is not None:  # what rounds to 0 counts as 0
        grad_inner = grad_inner * maps(trace["inner"] > 0).detach()
    pooled.backward(grad_inner)
    unit = float(trace["grad_norm_scale"])
    # Windows overlap: what several of them give to one element is kept within 8 bits.
    assert np.allclose(trace["grad_norm"] * unit, np.clip(back(a.grad), -127 * unit, 127 * unit), rtol=1e-9)
    y.retain_grad()
    normalised.backward(maps(trace["grad_norm"], unit).detach())
    near(trace["grad_y"], trace["grad_y_scale"], back(y.grad))

"""The oracle's step and evaluation against the formulas in float64, which round nothing."""

import numpy as np
import pytest
from numpy.typing import NDArray

from bnncore.optimizer import OPTIMIZERS
from bnncore.reference import (
    ReferenceEngine,
    convolve,
    input_gradient,
    l1_batch_norm,
    l1_batch_norm_gradient,
    max_pool,
    route_to_arg_max,
    weight_gradient,
)
from tests.bnncore.engine_cases import GEOMETRIES, Conv, case, random_batch
from tests.bnncore.random_states import random_state

Floats = NDArray[np.float64]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_step_is_the_float_formulas_but_for_the_rounding_to_8_bits(geometry: str) -> None:
    net = GEOMETRIES[geometry]
    spec, batch = net.spec, net.batch_size
    state = random_state(spec, 1)
    for block in spec.blocks:
        state[f"{block.norm}.beta"] /= 10  # of order one, as the numbers that it is added to
    oracle = ReferenceEngine(spec, OPTIMIZERS["latent8"], state, seed=3)
    u, labels = random_batch(net, 4)
    first = spec.blocks[0]
    x: Floats = (2.0 * u.astype(np.float64) - 255.0).reshape(batch, first.in_height, first.in_width, first.in_channels)

    step = oracle.step(u, labels)

    # Each block from what the engine gave it: its input exactly, the gradient from above as the integers it got.
    for i, (block, trace) in enumerate(zip(spec.blocks, step["blocks"], strict=True)):
        kernel, padding = (block.kernel_height, block.kernel_width), (block.pad_height, block.pad_width)
        window, products = (block.pool_height, block.pool_width), (block.conv_height, block.conv_width)
        outputs, channels = (batch, block.out_height, block.out_width), block.out_channels
        x = x.reshape(batch, block.in_height, block.in_width, block.in_channels)
        w = np.where(state[f"{block.linear}.weight"] < 0, -1.0, 1.0).reshape(channels, *kernel, block.in_channels)
        y = convolve(x, w, block.stride, padding)
        if block.pool == "before_norm":
            y, choice = max_pool(y, window)
        flat = y.reshape(-1, channels)
        assert np.array_equal(trace["y"].T, flat)
        normalised, _, _ = l1_batch_norm(flat, state[f"{block.norm}.beta"].astype(np.float64))
        sign = np.where(normalised.reshape(y.shape) >= 0, 1.0, -1.0)
        if block.pool == "after_sign":
            sign, choice = max_pool(sign, window)

        grad = (trace["grad_in"] * float(trace["grad_in_scale"])).reshape(*outputs, channels)
        if block.pool == "after_sign":
            grad = route_to_arg_max(grad, choice, products, window)
        passes = np.ones_like(normalised) if block.is_last else np.abs(normalised) <= 1
        grad_y = l1_batch_norm_gradient(flat, grad.reshape(flat.shape) * passes)
        if block.pool == "before_norm":
            grad_y = route_to_arg_max(grad_y.reshape(y.shape), choice, products, window)
        rounded = trace["grad_y"].reshape(batch, *products, channels)
        unit = float(trace["grad_y_scale"])
        assert np.abs(rounded).max() <= 127
        # Stochastic rounding goes to a neighbour, less than a unit away; float32 adds a few times 2^-24 of 127 units.
        assert np.abs(rounded * unit - grad_y.reshape(rounded.shape)).max() < unit * 1.001
        grad_weights = weight_gradient(x, rounded.astype(np.float64), kernel, block.stride, padding)
        assert np.array_equal(trace["grad_weights"], np.floor(grad_weights.reshape(channels, -1) / 2 ** shift_of(i, y)))
        if i > 0:
            below = step["blocks"][i - 1]
            grad_x = input_gradient(rounded.astype(np.float64), w, x.shape[1:3], block.stride, padding)
            assert np.array_equal(trace["grad_x"], grad_x.reshape(-1, block.in_channels))
            found = below["grad_in"].reshape(grad_x.shape) * float(below["grad_in_scale"])
            assert np.abs(found - grad_x * unit).max() < float(below["grad_in_scale"]) * 1.001
        x = sign


def shift_of(block: int, y: Floats) -> int:
    """Halvings that a first block's weight gradient needs to fit an int32, whatever its gradient."""
    positions = y.shape[0] * y.shape[1] * y.shape[2]
    return sum(127 * 255 * positions >> s > np.iinfo(np.int32).max for s in range(20)) if block == 0 else 0


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_evaluation_is_the_float_network_with_running_statistics(geometry: str) -> None:
    net = GEOMETRIES[geometry]
    spec, batch = net.spec, net.batch_size
    state = random_state(spec, 2)
    oracle = ReferenceEngine(spec, OPTIMIZERS["latent8"], state, seed=0)
    u, labels = random_batch(net, 5)
    x: Floats = 2.0 * u.astype(np.float64) - 255.0

    found = oracle.evaluate(u, labels)

    for block in spec.blocks:
        kernel, window = (block.kernel_height, block.kernel_width), (block.pool_height, block.pool_width)
        w = np.where(state[f"{block.linear}.weight"] < 0, -1.0, 1.0).reshape(block.out_channels, *kernel, -1)
        x = x.reshape(batch, block.in_height, block.in_width, block.in_channels)
        y = convolve(x, w, block.stride, (block.pad_height, block.pad_width))
        if block.pool == "before_norm":
            y, _ = max_pool(y, window)
        mean, deviation, beta = (
            state[f"{block.norm}.{name}"].astype(float) for name in ("mean", "mean_abs_dev", "beta")
        )
        x = (y - mean) / deviation + beta
        if not block.is_last:
            x = np.where(x >= 0, 1.0, -1.0)
        if block.pool == "after_sign":
            x, _ = max_pool(x, window)
    logits = x.reshape(batch, -1)
    exact = np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)) + logits.max(axis=1)
    losses = exact - logits[np.arange(batch), labels]
    assert np.allclose(found["logits"], logits, rtol=2e-7, atol=1e-6)  # rounded to float32 at the end
    assert np.array_equal(found["predictions"], logits.argmax(axis=1))
    assert found["correct"] == (logits.argmax(axis=1) == labels).sum()
    assert found["loss"] == pytest.approx(np.minimum(losses, 1000).mean(), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("pixels", "shift"), [(22_103, 0), (22_104, 1), (44_207, 1), (44_208, 2)])
def test_a_first_weight_gradient_is_halved_until_any_fits_32_bits(pixels: int, shift: int) -> None:
    # Three samples: 22,104 pixels are the first with 127 * 255 * 3 * pixels >= 2^31, 44,208 the first with 2^32.
    wide = case(3, (1, pixels), Conv(1, (1, 1)), 2)
    state = random_state(wide.spec, 1)
    state["norm1.beta"][:] = 0.2
    u, _ = random_batch(wide, 1)

    for seed in range(20):
        step = ReferenceEngine(wide.spec, OPTIMIZERS["latent8"], state, seed).step(u, np.array([0, 1, 1], np.int32))
        trace = step["blocks"][0]
        exact = trace["grad_y"][:, 0] @ (2 * u.reshape(-1).astype(np.int64) - 255)
        if exact % 4 != 0:  # so that every halving shows
            break

    assert exact % 4 != 0
    assert trace["grad_weights"].tolist() == [[exact >> shift]]

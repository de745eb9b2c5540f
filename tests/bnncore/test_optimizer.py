"""Optimizers: the ends of the interval of latent weights, and what their constants may be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bnncore import _native
from bnncore.engine import Engine, isa_available
from bnncore.errors import OptimizerError
from bnncore.optimizer import FLOAT_OPTIMIZERS, OPTIMIZERS, resolve_preset
from bnncore.reference import ReferenceEngine
from bnncore.zoo import mlp

K = _native.kernels
LATENT = sorted(set(OPTIMIZERS) - {"bop"})  # bop keeps no latent weights

Floats = NDArray[np.float32]
Bytes = NDArray[np.int8]


def update(isa: str, name: str, latent: NDArray[Any], grad: NDArray[np.int32], *, size: float) -> None:
    """Take one step without history by ``size`` of the latent weights' own unit for a gradient of 1."""
    count = len(latent)
    if name == "latent8":
        K.latent8(isa, latent, grad, 1, 0, 1.0, size, 1, 2, 0)
    elif name == "latent8m":
        K.latent8_momentum(isa, latent, np.zeros(count, np.int8), grad, 1, 0, 1.0, 0.9, 1.0, size, 1, 2, 0)
    elif name == "sgd":
        K.sgd(isa, latent, np.zeros(count, np.float32), grad, 1, 0, 1.0, 0.9, size)
    else:
        zeros = np.zeros((2, count), np.float32)
        K.adam(isa, latent, zeros[0], zeros[1], grad, 1, 0, 1.0, 0.9, 0.999, size / 0.1, 1 / 0.001, 1e-8)


@pytest.mark.parametrize("isa", isa_available())
@pytest.mark.parametrize("name", LATENT)
def test_a_latent_weight_at_the_very_end_comes_back_but_goes_no_further(isa: str, name: str) -> None:
    real = name in FLOAT_OPTIMIZERS
    end, size = (1.0, 0.25) if real else (127, 2.0)
    start: NDArray[Any] = np.array([end, end, end, -end, -end, -end] * 8, np.float32 if real else np.int8)
    latent = start.copy()
    grad = np.array([1, 0, -1, 1, 0, -1] * 8, np.int32)

    update(isa, name, latent, grad, size=size)

    outward = start * grad <= 0
    assert np.array_equal(latent[outward], start[outward])
    moved = (start - size * grad)[~outward]
    assert np.allclose(latent[~outward], moved, rtol=0, atol=1e-5)  # adam: 1 - 0.999 in float32


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_weights_at_their_ends_move_as_the_oracle_says(name: str) -> None:
    spec = mlp((6, 6), (40, 33), 10)
    preset = resolve_preset("bitfleet", name)
    preset = replace(preset, optimizer=replace(preset.optimizer, step_size=0.2, threshold=0.002))
    engine = Engine(spec, batch_size=30, preset=preset, seed=4)
    engine.initialise()
    state = engine.state()
    for value in state.values():
        if value.ndim > 1:
            value[...] = np.where(value < 0, -1, 1) * (1 if value.dtype == np.float32 else 127)
    engine.load_state(state)
    oracle = ReferenceEngine(spec, preset.optimizer, state, seed=4)
    rng = np.random.default_rng(5)

    for _ in range(6):
        engine.input[:] = rng.integers(0, 256, engine.input.shape, dtype=np.uint8)
        engine.labels[:] = rng.integers(0, 10, 30)
        engine.step()
        oracle.step(engine.input.copy(), engine.labels.copy())

    for i, block in enumerate(spec.blocks):
        found = engine.state()[f"{block.linear}.weight"]
        assert np.array_equal(found, np.where(oracle.weights[i] < 0, -127, 127) if name == "bop" else oracle.weights[i])
        end = np.abs(state[f"{block.linear}.weight"]).max()
        assert np.abs(found).max() == end
        assert not np.array_equal(found, state[f"{block.linear}.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step_size": 0.0}, "step_size of optimizer 'latent8' must be positive"),
        ({"gamma": float("nan")}, "gamma of optimizer 'latent8' must be positive and finite, got nan"),
        ({"momentum": 1.0}, r"momentum of optimizer 'latent8' must lie in \(0, 1\), got 1.0"),
        ({"init_limit": 128}, r"must lie in \[1, 127\], got 128"),
    ],
)
def test_constants_out_of_range_are_told(change: dict[str, float], message: str) -> None:
    with pytest.raises(OptimizerError, match=message):
        resolve_preset().with_optimizer(**change)


def test_the_digest_knows_every_constant() -> None:
    preset = resolve_preset()

    digests = {preset.digest, *(resolve_preset("bitfleet", name).digest for name in OPTIMIZERS)}
    assert len(digests) == len(OPTIMIZERS)
    assert preset.with_optimizer(step_size=2 * preset.optimizer.step_size).digest not in digests

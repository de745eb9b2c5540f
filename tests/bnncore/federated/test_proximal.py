"""The pull of FedProx: where it leads, that it is right on average, and that the engine trains from what it leaves."""

from __future__ import annotations

import numpy as np
import pytest

from bnncore.engine import Engine
from bnncore.errors import TaskFailedError
from bnncore.federated.proximal import ProximalPull
from bnncore.optimizer import resolve_preset
from bnncore.zoo import mlp

SPEC = mlp((20, 20), (200,), 3)


def make_engine(optimizer: str = "latent8", preset: str = "bitfleet") -> Engine:
    engine = Engine(SPEC, batch_size=4, preset=resolve_preset(preset, optimizer))
    engine.initialise(7)
    return engine


def weights_of(engine: Engine, name: str = "dense1.weight") -> np.ndarray:
    return engine.state(copy=False)[name]


@pytest.mark.parametrize("mu", [0.5, 5.0])
def test_the_pull_is_right_on_average_and_never_goes_past_its_start(mu: float) -> None:
    engine = make_engine()
    start = weights_of(engine).astype(int)
    pull = ProximalPull(engine, mu, seed=1)
    away = np.random.default_rng(0).integers(-60, 61, start.shape)
    weights_of(engine)[...] = start + away

    pull.pull(step=0, step_scale=0.5)

    moved = start + away - weights_of(engine)
    rate = mu * engine.preset.optimizer.step_size * 0.5
    assert np.all(np.abs(moved - rate * away) < 1.0 + 1e-3)
    assert np.all(np.sign(moved) * np.sign(away) >= 0)
    # 80,000 roundings of standard deviation at most 1/2
    assert abs(np.mean((moved - rate * away) * np.sign(away))) < 5 * 0.5 / np.sqrt(away.size)


def test_a_rate_of_one_leads_back_to_the_start() -> None:
    engine = make_engine()
    start = weights_of(engine).copy()
    pull = ProximalPull(engine, 1e6, seed=1)
    weights_of(engine)[...] = -start

    pull.pull(step=0, step_scale=1.0)

    np.testing.assert_array_equal(weights_of(engine), start)


def test_the_same_seed_and_step_round_alike_and_others_do_not() -> None:
    results = []
    for seed, step in ((1, 0), (1, 0), (2, 0), (1, 1)):
        engine = make_engine()
        pull = ProximalPull(engine, 1.0, seed)
        weights_of(engine)[...] = np.clip(weights_of(engine).astype(int) + 40, -127, 127)
        pull.pull(step, 1.0)
        results.append(weights_of(engine).tobytes())

    assert results[0] == results[1]
    assert len(set(results)) == 3


def test_the_engine_uses_the_weights_that_the_pull_leaves() -> None:
    losses = []
    for back in (False, True):
        engine = make_engine()
        engine.input[:] = np.random.default_rng(0).integers(0, 256, engine.input.shape)
        engine.labels[:] = [0, 1, 2, 0]
        first = engine.step(1.0).loss
        engine = make_engine()
        engine.input[:] = np.random.default_rng(0).integers(0, 256, engine.input.shape)
        engine.labels[:] = [0, 1, 2, 0]
        pull = ProximalPull(engine, 1e6, seed=1)
        for name in ("dense1.weight", "dense2.weight"):
            weights_of(engine, name)[...] *= -1
        if back:
            pull.pull(step=0, step_scale=1.0)
        losses.append((engine.step(1.0).loss == first, back))

    assert losses == [(False, False), (True, True)]


def test_real_valued_latent_weights_are_pulled_as_they_are() -> None:
    engine = make_engine("adam")
    start = weights_of(engine).copy()
    pull = ProximalPull(engine, 100.0, seed=1)  # times a step size of 1e-3
    weights_of(engine)[...] = 0.5

    pull.pull(step=0, step_scale=1.0)

    np.testing.assert_allclose(weights_of(engine), 0.5 - 0.1 * (0.5 - start), rtol=0, atol=2.0**-23)


def test_an_optimizer_without_latent_weights_is_refused() -> None:
    with pytest.raises(TaskFailedError, match="needs latent weights; optimizer 'bop'"):
        ProximalPull(make_engine("bop"), 1.0, seed=1)

"""The native engine on residual networks: bit for bit the oracle's, on any instruction set and number of threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnncore.engine import Engine, isa_available
from bnncore.errors import BudgetError, SpecError
from bnncore.layers import L1BatchNorm, Residual, Sign
from bnncore.memory import compare_memory
from bnncore.optimizer import OPTIMIZERS, resolve_preset
from bnncore.plan import max_batch_size, plan_memory
from bnncore.predictor import Predictor
from bnncore.reference import ResidualReference
from bnncore.spec import ModelSpec
from bnncore.state import State, without_statistics
from bnncore.zoo import bireal18, resnete18
from tests.bnncore.engine_cases import assert_no_overlap
from tests.bnncore.residual_cases import CASES, random_batch, residual_specs, start


def build(spec: ModelSpec, batch_size: int, optimizer: str = "latent8", threads: int = 1, seed: int = 2) -> Engine:
    return Engine(spec, batch_size=batch_size, preset=resolve_preset(optimizer=optimizer), seed=seed, threads=threads)


def expected_state(oracle: ResidualReference, spec: ModelSpec, optimizer: str) -> State:
    state: State = {}
    for tensor in spec.tensors:
        layer, part = tensor.name.rsplit(".", 1)
        if tensor.role == "weight":
            weights = oracle.weights[layer].reshape(tensor.shape)
            state[tensor.name] = np.where(weights < 0, -127, 127) if optimizer == "bop" else weights
        elif tensor.role in ("real_weight", "bias"):
            state[tensor.name] = oracle.real[tensor.name].value
        else:
            norm = oracle.norms[layer]
            state[tensor.name] = norm.beta.value if part == "beta" else getattr(norm, part)
    return state


def check_steps(
    spec: ModelSpec, batch: int, optimizer: str, *, threads: int = 1, steps: int = 3, state: Any = None
) -> None:
    """Take steps in both, and compare everything that lasts and everything that is said."""
    state = state or start(spec, 1, dtype=np.float32 if optimizer in ("adam", "sgd") else np.int8)
    engine = build(spec, batch, optimizer, threads)
    engine.load_state(without_statistics(state))
    oracle = ResidualReference(spec, OPTIMIZERS[optimizer], state, seed=2)
    for step in range(steps):
        u, labels = random_batch(spec, batch, step)
        engine.input[:], engine.labels[:] = u, labels
        found, wanted = engine.step(), oracle.step(u, labels)
        where = f"{spec.name}, {optimizer}, {threads} thread(s), step {step}"
        assert (found.loss, found.correct) == (wanted["loss"], wanted["correct"]), where
        assert engine.saturated == oracle.saturated, where
        for name, values in expected_state(oracle, spec, optimizer).items():
            assert np.array_equal(engine.state()[name], values), f"{where}, {name}"
    for count in {1, batch}:
        evaluated = oracle.evaluate(u[:count], labels[:count])
        engine.input[:count], engine.labels[:count] = u[:count], labels[:count]
        result = engine.evaluate_batch(count)
        assert (result.loss, result.correct) == (evaluated["loss"], evaluated["correct"])
        assert np.array_equal(engine.predict_batch(count), evaluated["predictions"])


@pytest.mark.parametrize("isa", isa_available())
@pytest.mark.parametrize("name", CASES)
def test_steps_are_the_oracles_bit_for_bit(name: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITFLEET_ISA", isa)
    for threads in (1, 3):
        check_steps(*CASES[name], "latent8", threads=threads)


@pytest.mark.parametrize("optimizer", sorted(set(OPTIMIZERS) - {"latent8"}))
@pytest.mark.parametrize("name", ["max pool", "odd"])
def test_steps_are_the_oracles_with_every_optimizer(name: str, optimizer: str) -> None:
    check_steps(*CASES[name], optimizer, threads=2)


@settings(max_examples=25, deadline=None)
@given(residual_specs, st.integers(1, 5), st.sampled_from(["latent8", "bop"]), st.integers(1, 3))
def test_steps_on_any_network_are_the_oracles(spec: ModelSpec, batch: int, optimizer: str, threads: int) -> None:
    check_steps(spec, batch, optimizer, threads=threads, steps=2)


def test_numbers_that_do_not_fit_the_stream_are_kept_within_it_and_counted() -> None:
    spec, batch = CASES["max pool"]
    state = start(spec, 1)
    state["norm1.beta"][:] = [20, -20, 0, 0]  # a contribution may be 64 / 2 units of 1 at most
    state["stem_norm1.beta"][0] = 70  # and what the second norm takes 64
    engine = build(spec, batch)
    engine.load_state(without_statistics(state))
    engine.input[:], engine.labels[:] = random_batch(spec, batch, 0)

    engine.step()

    assert engine.saturated >= 16 * 16 * batch  # every element of a channel that starts at 70 has saturated
    check_steps(spec, batch, "latent8", state=state)


def test_a_constant_image_gives_dead_channels_and_no_gradient() -> None:
    spec, batch = CASES["bare"]
    engine, oracle = build(spec, batch), ResidualReference(spec, OPTIMIZERS["latent8"], start(spec, 1), seed=2)
    engine.load_state(without_statistics(start(spec, 1)))
    u, labels = np.full((batch, spec.input_features), 0, np.uint8), np.array([0, 1, 2, 3], np.int32)
    engine.input[:], engine.labels[:] = u, labels

    assert engine.step().loss == oracle.step(u, labels)["loss"]


def test_the_same_seed_starts_the_same_network_and_another_does_not() -> None:
    spec, batch = CASES["max pool"]
    digests = [
        build(spec, batch, seed=seed, threads=threads).weights_digest() for seed, threads in ((1, 1), (1, 2), (2, 1))
    ]

    assert digests[0] == digests[1] != digests[2]
    state = build(spec, batch, seed=1).state()
    for tensor in spec.tensors:
        if tensor.role == "real_weight":  # uniform with the variance 1 / fan-in
            limit = np.sqrt(3 / np.prod(tensor.shape[1:]))
            assert np.abs(state[tensor.name]).max() <= limit
            assert np.abs(state[tensor.name]).max() > limit / 2
        elif tensor.role in ("beta", "bias", "mean"):
            assert not state[tensor.name].any()


def test_a_state_goes_in_and_out_unchanged() -> None:
    spec, batch = CASES["odd"]
    engine = build(spec, batch)
    engine.input[:], engine.labels[:] = random_batch(spec, batch, 0)
    engine.step()
    state = engine.state()
    other = build(spec, batch)

    other.load_state(state)

    assert other.weights_digest() == engine.weights_digest()
    assert all(np.array_equal(values, other.state()[name]) for name, values in state.items())


def test_training_goes_on_from_a_saved_state_bit_for_bit() -> None:
    spec, batch = CASES["bireal"]
    first, second = build(spec, batch), build(spec, batch, threads=2, seed=9)
    for step in range(2):
        first.input[:], first.labels[:] = random_batch(spec, batch, step)
        first.step()
    tensors, counters = first.training_state()
    second.load_training_state({name: values.copy() for name, values in tensors.items()}, counters)
    for engine in (first, second):
        engine.input[:], engine.labels[:] = random_batch(spec, batch, 7)
        engine.step()

    assert first.weights_digest() == second.weights_digest()


@pytest.mark.parametrize("name", CASES)
def test_a_predictor_gives_what_the_engine_gives(name: str) -> None:
    spec, batch = CASES[name]
    engine = build(spec, batch)
    u, labels = random_batch(spec, batch, 3)
    engine.input[:], engine.labels[:] = u, labels
    engine.step()
    predictor = Predictor(spec, engine.state(), batch_size=batch)
    predictor.input[:], predictor.labels[:] = u, labels

    assert predictor.evaluate_batch(batch) == engine.evaluate_batch(batch)
    assert predictor.plan.peak_bytes < engine.plan.peak_bytes


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("threads", [1, 2])
def test_the_plan_is_the_arena_and_nothing_overlaps(optimizer: str, threads: int) -> None:
    for spec, batch in CASES.values():
        preset = resolve_preset(optimizer=optimizer)
        plan = plan_memory(spec, batch_size=batch, preset=preset, threads=threads)

        engine = Engine(spec, batch_size=batch, preset=preset, threads=threads)

        assert_no_overlap(plan)
        assert engine.plan == plan
        assert engine.arena.nbytes == plan.peak_bytes


@pytest.mark.parametrize("spec", [resnete18(), bireal18()])
def test_the_papers_residual_networks_take_a_tenth_of_the_standard_algorithm(spec: ModelSpec) -> None:
    compared = compare_memory(spec, batch_size=32, preset=resolve_preset())

    assert compared["bitfleet"]["total_bytes"] < 72 << 20
    assert compared["ratio"] > 10


def test_a_batch_that_no_plan_takes_says_so_beside_the_published_figures() -> None:
    compared = compare_memory(resnete18(), batch_size=4096, preset=resolve_preset())

    assert compared["bitfleet"] is compared["ratio"] is None
    assert "batch_size must lie in [1, 167] for model 'resnete18'" in compared["not_planned"]
    assert max_batch_size(resnete18()) == 167


def test_sizes_that_the_engine_does_not_take_are_refused_by_name() -> None:
    spec = CASES["bare"][0]
    assert spec.residual is not None
    unit = spec.layers[3]
    assert isinstance(unit, Residual)
    _, conv, _ = unit.body
    more = [
        Residual(f"u{i}", (Sign(f"s{i}"), type(conv)(**{**vars(conv), "name": f"c{i}"}), L1BatchNorm(f"n{i}", 16)))
        for i in range(10, 25)
    ]
    long = ModelSpec("long", spec.input_shape, (*spec.layers[:4], *more, *spec.layers[4:]))

    with pytest.raises(SpecError, match="at most 15 residual layers may add to one stream, 16 do up to layer 'u24'"):
        plan_memory(long, batch_size=1)
    with pytest.raises(BudgetError, match=r"batch_size must lie in \[1, 167\].*map of layer 'stem' fit; got 168"):
        plan_memory(resnete18(), batch_size=168)


def test_a_step_has_no_trace_and_refuses_labels_out_of_range() -> None:
    from bnncore.errors import DataError

    spec, batch = CASES["bare"]
    engine = build(spec, batch)
    engine.labels[:] = 4

    with pytest.raises(DataError, match=r"labels must lie in \[0, 4\)"):
        engine.step()
    with pytest.raises(SpecError, match="is a residual network"):
        engine.step_traced()


def test_a_small_network_learns() -> None:
    generator = np.random.default_rng(5)
    spec = resnete18((8, 8), (16, 32), 2, 4)
    patterns = generator.integers(0, 256, (4, 64))
    engine = build(spec, 64)
    losses = []
    for _ in range(60):
        labels = generator.integers(0, 4, 64)
        noisy = patterns[labels] + generator.normal(0, 60, (64, 64))
        engine.input[:], engine.labels[:] = np.clip(noisy, 0, 255).astype(np.uint8), labels
        losses.append(engine.step().loss)

    assert np.mean(losses[-5:]) < 0.3 * losses[0]


def test_statistics_taken_anew_are_those_of_the_batches_observed() -> None:
    spec, batch = CASES["max pool"]
    engine = build(spec, batch)
    engine.load_state(without_statistics(start(spec, 1)))
    oracle = ResidualReference(spec, OPTIMIZERS["latent8"], start(spec, 1), seed=2)
    u, labels = random_batch(spec, batch, 0)
    engine.input[:], engine.labels[:] = u, labels
    before = engine.state()

    engine.observe(0)

    after = engine.state()
    oracle.step(u, labels)  # the first step's running statistics are the batch's own
    for tensor in spec.tensors:
        if tensor.is_statistic:
            layer, part = tensor.name.rsplit(".", 1)
            assert np.array_equal(after[tensor.name], getattr(oracle.norms[layer], part))
        else:
            assert np.array_equal(after[tensor.name], before[tensor.name])
    assert engine.saturated == 0
    once = {name: values.copy() for name, values in after.items()}
    engine.observe(1)  # the same batch again: the mean of both
    assert all(np.allclose(values, once[name], rtol=1e-6, atol=1e-6) for name, values in engine.state().items())

"""The preset `standard` on residual networks: bit for bit its NumPy oracle, and what it promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnncore.engine import Engine, isa_available
from bnncore.memory import compare_memory, count_layers, standard_memory
from bnncore.optimizer import FLOAT_OPTIMIZERS, resolve_preset
from bnncore.plan import plan_memory
from bnncore.predictor import Predictor
from bnncore.reference.published_residual import PublishedResidualReference
from bnncore.spec import ModelSpec
from bnncore.state import State, to_float32, without_statistics
from bnncore.zoo import bireal18, resnete18
from tests.bnncore.engine_cases import assert_no_overlap
from tests.bnncore.residual_cases import CASES, random_batch, residual_specs, start


def build(spec: ModelSpec, batch_size: int, optimizer: str = "adam", threads: int = 1, seed: int = 2) -> Engine:
    preset = resolve_preset("standard", optimizer)
    return Engine(spec, batch_size=batch_size, preset=preset, seed=seed, threads=threads)


def give(engine: Engine, batch: tuple[np.ndarray, np.ndarray]) -> None:
    engine.input[:], engine.labels[:] = batch


def gradient(engine: Engine, name: str) -> Any:
    """Of the last step, of a weight, bias or beta, flat."""
    (entry,) = (e for e in engine.plan.entries if e.name == f"{name}_gradient")
    return engine.arena[entry.offset : entry.offset + entry.num_bytes].view(np.float32)


def check_steps(spec: ModelSpec, batch: int, optimizer: str, *, threads: int = 1, steps: int = 3) -> None:
    """Take steps in both, and compare everything that lasts and everything that is said."""
    state = start(spec, 1, dtype=np.float32)
    engine = build(spec, batch, optimizer, threads)
    engine.load_state(without_statistics(state))
    oracle = PublishedResidualReference(spec, engine.preset.optimizer, state)
    for step in range(steps):
        u, labels = random_batch(spec, batch, step)
        give(engine, (u, labels))
        found, wanted = engine.step(1 - 0.1 * step), oracle.step(u, labels, 1 - 0.1 * step)
        where = f"{spec.name}, {optimizer}, {threads} thread(s), step {step}"
        assert (found.loss, found.correct) == wanted, where
        for name, values in oracle.gradients.items():
            assert np.array_equal(gradient(engine, name), values.ravel()), f"{where}, gradient of {name}"
        for name, values in expected_state(oracle, spec).items():
            assert np.array_equal(engine.state()[name], values), f"{where}, {name}"
    for count in {1, batch}:
        loss, correct, predictions = oracle.evaluate(u[:count], labels[:count])
        engine.input[:count], engine.labels[:count] = u[:count], labels[:count]
        result = engine.evaluate_batch(count)
        assert (result.loss, result.correct) == (loss, correct)
        assert np.array_equal(engine.predict_batch(count), predictions)


def expected_state(oracle: PublishedResidualReference, spec: ModelSpec) -> State:
    state: State = {}
    for tensor in spec.tensors:
        layer, part = tensor.name.rsplit(".", 1)
        if tensor.role == "weight":
            state[tensor.name] = oracle.weights[layer].reshape(tensor.shape)
        elif tensor.role in ("real_weight", "bias"):
            state[tensor.name] = oracle.real[tensor.name].value
        else:
            norm = oracle.norms[layer]
            state[tensor.name] = norm.beta.value if part == "beta" else getattr(norm, part)
    return state


@pytest.mark.parametrize("isa", isa_available())
@pytest.mark.parametrize("name", CASES)
def test_steps_are_the_oracles_bit_for_bit(name: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITFLEET_ISA", isa)
    for threads in (1, 3):
        check_steps(*CASES[name], "adam", threads=threads)


@pytest.mark.parametrize("name", ["max pool", "odd"])
def test_steps_of_sgd_are_the_oracles(name: str) -> None:
    check_steps(*CASES[name], "sgd", threads=2)


@settings(max_examples=25, deadline=None)
@given(residual_specs, st.integers(1, 5), st.sampled_from(FLOAT_OPTIMIZERS), st.integers(1, 3))
def test_steps_on_any_network_are_the_oracles(spec: ModelSpec, batch: int, optimizer: str, threads: int) -> None:
    check_steps(spec, batch, optimizer, threads=threads, steps=2)


def test_a_map_of_more_than_192_positions_is_the_oracles() -> None:
    check_steps(resnete18((32, 28), (6, 20), 1, 3), 2, "adam", threads=2, steps=2)


def test_the_same_seed_starts_the_network_of_the_preset_bitfleet() -> None:
    spec, batch = CASES["max pool"]
    standard = build(spec, batch, seed=1, threads=2).state()
    float_weights = Engine(spec, batch_size=batch, preset=resolve_preset("bitfleet", "adam"), seed=1).state()

    assert standard.keys() == float_weights.keys()
    assert all(np.array_equal(values, float_weights[name]) for name, values in standard.items())
    assert not np.array_equal(build(spec, batch, seed=2).state()["conv1.weight"], standard["conv1.weight"])


def test_a_state_of_the_preset_bitfleet_goes_in_as_real_weights() -> None:
    spec, batch = CASES["small images"]
    trained = Engine(spec, batch_size=batch, preset=resolve_preset(), seed=3)
    u, labels = random_batch(spec, batch, 0)
    give(trained, (u, labels))
    trained.step()
    engine = build(spec, batch)

    engine.load_state(trained.state())

    weights = {name: to_float32(values) for name, values in trained.state().items()}
    oracle = PublishedResidualReference(spec, engine.preset.optimizer, weights)
    give(engine, (u, labels))
    result = engine.evaluate_batch(batch)
    assert (result.loss, result.correct) == oracle.evaluate(u, labels)[:2]
    assert all(np.array_equal(values, weights[name]) for name, values in engine.state().items())


def test_training_goes_on_from_a_saved_state_bit_for_bit() -> None:
    spec, batch = CASES["bireal"]
    first, second = build(spec, batch), build(spec, batch, threads=2, seed=9)
    for step in range(2):
        give(first, random_batch(spec, batch, step))
        first.step()
    tensors, counters = first.training_state()
    second.load_training_state({name: values.copy() for name, values in tensors.items()}, counters)
    for engine in (first, second):
        give(engine, random_batch(spec, batch, 7))
        engine.step()

    assert first.weights_digest() == second.weights_digest()


def test_statistics_taken_anew_are_those_of_the_batch_observed() -> None:
    spec, batch = CASES["max pool"]
    state = start(spec, 1, dtype=np.float32)
    engine, oracle = build(spec, batch), PublishedResidualReference(spec, resolve_preset("standard").optimizer, state)
    engine.load_state(without_statistics(state))
    u, labels = random_batch(spec, batch, 0)
    give(engine, (u, labels))
    before = engine.state()

    engine.observe(0)

    oracle.step(u, labels)  # the first step's running statistics are the batch's own
    for tensor in spec.tensors:
        wanted = expected_state(oracle, spec) if tensor.is_statistic else before
        assert np.array_equal(engine.state()[tensor.name], wanted[tensor.name])


def test_a_constant_image_gives_finite_numbers_and_teaches_the_bias() -> None:
    spec, batch = CASES["small images"]
    engine = build(spec, batch)
    engine.input[:], engine.labels[:] = 77, 3

    engine.step()

    after = engine.state()
    assert all(np.isfinite(values).all() for values in after.values())
    assert np.array_equal(np.sign(after["dense.bias"]), np.where(np.arange(10) == 3, 1, -1))


def test_a_small_network_learns_and_a_predictor_takes_it() -> None:
    generator = np.random.default_rng(5)
    spec = resnete18((8, 8), (16, 32), 2, 4)
    patterns = generator.integers(0, 256, (4, 64))
    engine = build(spec, 64)

    def draw() -> tuple[np.ndarray, np.ndarray]:
        labels = generator.integers(0, 4, 64)
        noisy = patterns[labels] + generator.normal(0, 60, (64, 64))
        return np.clip(noisy, 0, 255).astype(np.uint8), labels

    losses = []
    for _ in range(60):
        give(engine, draw())
        losses.append(engine.step().loss)
    predictor = Predictor(spec, engine.state(), batch_size=64)
    for one in (engine, predictor):
        generator = np.random.default_rng(6)
        one.input[:], one.labels[:] = draw()

    assert np.mean(losses[-5:]) < 0.3 * losses[0]
    # The predictor rounds streams to 1 / 512, so a sample between two classes may fall to the other.
    assert (predictor.predict_batch(64) == engine.predict_batch(64)).sum() >= 62


# Memory.


@pytest.mark.parametrize("optimizer", FLOAT_OPTIMIZERS)
@pytest.mark.parametrize("threads", [1, 3])
def test_the_plan_is_the_arena_and_nothing_overlaps(optimizer: str, threads: int) -> None:
    for spec, batch in CASES.values():
        preset = resolve_preset("standard", optimizer)
        plan = plan_memory(spec, batch_size=batch, preset=preset, threads=threads)

        engine = Engine(spec, batch_size=batch, preset=preset, threads=threads)

        assert_no_overlap(plan)
        assert engine.plan == plan
        assert engine.arena.nbytes == plan.peak_bytes


@pytest.mark.parametrize("name", CASES)
def test_a_step_reads_nothing_that_it_has_not_written(name: str) -> None:
    spec, batch = CASES[name]
    digests = []
    for poison in (0x5A, 0xC3):
        engine = build(spec, batch)
        engine.initialise()
        kept = np.zeros(engine.plan.peak_bytes, bool)
        for entry in engine.plan.entries:
            if entry.role in ("weights", "momenta", "norm", "input"):
                kept[entry.offset : entry.offset + entry.num_bytes] = True
        for step in range(3):
            engine.arena[~kept] = poison + step  # what a step leaves behind is of no use to the next
            give(engine, random_batch(spec, batch, step))
            engine.step()
        digests.append(engine.weights_digest())

    assert digests[0] == digests[1]


@pytest.mark.parametrize("name", CASES)
def test_every_entry_of_the_plan_is_written(name: str) -> None:
    spec, batch = CASES[name]
    engine = build(spec, batch, threads=2)
    engine.arena[:] = 0x5A
    engine.initialise()
    for step in range(3):
        give(engine, random_batch(spec, batch, step))
        engine.step()

    untouched = [e.name for e in engine.plan.entries if (engine.arena[e.offset :][: e.num_bytes] == 0x5A).all()]
    assert untouched == []


@pytest.mark.parametrize("spec", [resnete18(), bireal18()], ids=lambda spec: spec.name)
def test_the_plan_is_the_published_model(spec: ModelSpec) -> None:
    counts = count_layers(spec)
    published = standard_memory(counts, 32).total_bytes
    planned = plan_memory(spec, batch_size=32, preset=resolve_preset("standard")).peak_bytes

    # Here the input is bytes, and signs are not kept; the second norm of the stem is not counted there.
    height, width, channels = spec.input_shape
    fewer = 32 * (3 * height * width * channels + counts.signs // 8)
    assert spec.residual is not None
    assert spec.residual.stem.second_norm is not None
    more = 4 * 32 * np.prod(spec.residual.stem.out_map) + 2**22  # scratch, moments of beta
    assert published - fewer <= planned <= published - fewer + more


def test_the_default_preset_takes_an_eighth_of_the_plan() -> None:
    standard = compare_memory(resnete18(), batch_size=32, preset=resolve_preset("standard"))
    bitfleet = compare_memory(resnete18(), batch_size=32, preset=resolve_preset())

    assert standard["bitfleet"]["total_bytes"] > 8 * bitfleet["bitfleet"]["total_bytes"]

"""Convolutions and pools in the native engine: bit for bit as the oracle, at every edge, in the memory planned."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bnncore.engine import Engine, isa_available
from bnncore.errors import SpecError
from bnncore.optimizer import resolve_preset
from bnncore.plan import PlanEntry, plan_memory
from bnncore.predictor import Predictor
from bnncore.reference import ReferenceEngine
from bnncore.state import State, weights_digest, without_statistics
from tests.bnncore.engine_cases import (
    FEW,
    GEOMETRIES,
    OPTIMIZER_NAMES,
    PACKINGS,
    PAIR,
    SOME,
    Case,
    Conv,
    assert_no_overlap,
    assert_same_parameters,
    assert_same_step,
    case,
    network,
    random_batch,
)

Batch = tuple[NDArray[np.uint8], NDArray[np.int32]]

# A net of each layer type, small since its steps are many.
SMALL: dict[str, Case] = {
    "valid": case(12, (6, 5, 3), Conv(20), 10),
    "same": case(12, (4, 5, 3), Conv(20, padding="same"), Conv(9, padding="same"), 10),
    "stride": case(12, (7, 6, 3), Conv(18, (3, 3), "same", 2), Conv(9, (2, 2), "valid", 2), 10),
    "time": case(12, (1, 12, 4), Conv(18, (1, 5), "same"), Conv(9, (1, 3)), 6),
    "pool before the norm": case(12, (7, 6), Conv(20, padding="same", before=PAIR), Conv(9, (2, 2)), 10),
    "pool after the sign": case(12, (7, 8), Conv(20, after=PAIR), Conv(9, (1, 1), after=(1, 2)), 10),
    "ends in a convolution": case(12, (5, 5, 2), Conv(16), Conv(66, padding="same"), Conv(4)),
    "dense above": case(12, (5, 4, 3), Conv(65), 40, 10),
}


def with_optimizers(nets: Sequence[str]) -> list[tuple[str, str]]:
    """Pair nets with the optimizers of the two ways to keep weights, and a few with all."""
    return [(net, name) for net in nets for name in OPTIMIZER_NAMES if name in PACKINGS or net in FEW]


def build(net: Case, name: str = "latent8", *, threads: int = 1, state: State | None = None) -> Engine:
    preset = resolve_preset("bitfleet", name)
    engine = Engine(net.spec, batch_size=net.batch_size, preset=preset, seed=7, threads=threads)
    if state is None:
        engine.initialise()
    else:
        engine.load_state(without_statistics(state))
    return engine


def on_every_isa(
    net: Case, name: str, monkeypatch: pytest.MonkeyPatch, state: State | None = None
) -> dict[str, Engine]:
    """An engine chooses its instruction set when it is made."""
    engines = {}
    for isa in isa_available():
        monkeypatch.setenv("BITFLEET_ISA", isa)
        engines[isa] = build(net, name, state=state)
    return engines


def oracle_of(engine: Engine) -> ReferenceEngine:
    return ReferenceEngine(engine.spec, engine.preset.optimizer, engine.state(), engine.seed)


def give(engine: Engine, batch: Batch) -> None:
    engine.input[:], engine.labels[:] = batch


def assert_equal_steps(engines: dict[str, Engine], batches: Sequence[Batch]) -> list[dict[str, Any]]:
    """Take traced steps beside the oracle, with a step scale that falls; give the oracle's traces."""
    oracle = oracle_of(next(iter(engines.values())))
    traces = []
    for step, batch in enumerate(batches):
        wanted = oracle.step(*batch, 1 - 0.1 * step)
        for isa, engine in engines.items():
            give(engine, batch)
            assert_same_step(engine.step_traced(1 - 0.1 * step), wanted, f"step {step}, {isa}")
            assert_same_parameters(engine, oracle, f"step {step}, {isa}")
        traces.append(wanted)
    return traces


@pytest.mark.parametrize(("geometry", "name"), with_optimizers(list(GEOMETRIES)))
def test_every_intermediate_of_four_steps_equals_the_oracle(
    geometry: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = GEOMETRIES[geometry]

    assert_equal_steps(on_every_isa(net, name, monkeypatch), [random_batch(net, step) for step in range(4)])


@pytest.mark.parametrize(("kind", "name"), with_optimizers(list(SMALL)))
def test_fifty_steps_end_in_the_oracles_weights(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = SMALL[kind]
    engines = on_every_isa(net, name, monkeypatch)
    oracle = oracle_of(next(iter(engines.values())))

    for step in range(50):
        batch = random_batch(net, step % 5)
        wanted = oracle.step(*batch)
        for engine in engines.values():
            give(engine, batch)
            result = engine.step()
            assert (result.loss, result.correct) == (wanted["loss"], wanted["correct"]), f"step {step}"

    for isa, engine in engines.items():
        assert_same_parameters(engine, oracle, isa)


@pytest.mark.parametrize(("geometry", "name"), with_optimizers(list(GEOMETRIES)))
def test_evaluation_equals_the_oracle_and_the_predictor(
    geometry: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = GEOMETRIES[geometry]
    u, labels = random_batch(net, 9)
    engines = on_every_isa(net, name, monkeypatch)
    for engine in engines.values():
        give(engine, random_batch(net, 8))
        engine.step()
    state = engine.state()
    oracle = ReferenceEngine(net.spec, engine.preset.optimizer, state, seed=0)

    for count in (net.batch_size, (net.batch_size + 1) // 2):
        wanted = oracle.evaluate(u[:count], labels[:count])
        for isa, engine in engines.items():
            monkeypatch.setenv("BITFLEET_ISA", isa)
            for evaluated in (engine, Predictor(net.spec, state, batch_size=net.batch_size)):
                evaluated.input[:], evaluated.labels[:] = u, labels
                result = evaluated.evaluate_batch(count)
                assert (result.loss, result.correct) == (wanted["loss"], wanted["correct"]), isa
                assert np.array_equal(evaluated.predict_batch(count), wanted["predictions"]), isa


@pytest.mark.parametrize(("geometry", "name"), with_optimizers(SOME))
def test_the_digest_depends_on_no_thread_and_no_instruction_set(
    geometry: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = GEOMETRIES[geometry]

    def digest(isa: str, threads: int) -> str:
        monkeypatch.setenv("BITFLEET_ISA", isa)
        engine = build(net, name, threads=threads)
        for step in range(3):
            give(engine, random_batch(net, step))
            engine.step()
        return weights_digest(net.spec, engine.state())

    found = {(isa, threads): digest(isa, threads) for isa in isa_available() for threads in (1, 2, 3, 4)}

    assert found == dict.fromkeys(found, found["portable", 1])


# Constant channels, equal labels.


@pytest.mark.parametrize("beta", [0.5, -0.5, -1.5])
@pytest.mark.parametrize("pool", ["none", "before", "after"])
def test_a_constant_channel_takes_the_sign_of_beta_and_learns_nothing(
    pool: str, beta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = (PAIR if pool == place else None for place in ("before", "after"))
    net = case(8, (6, 6, 2), Conv(3, before=before, after=after), 4)
    state = build(net).state()
    state["conv1.weight"][0] = 50  # the inputs are opposite, so the first channel is 0 everywhere
    state["conv1.weight"][1:] = np.array([50, -50])
    state["norm1.beta"][0] = beta
    u, labels = random_batch(net, 1)
    pixels = u.reshape(-1, 2)
    pixels[:, 1] = 255 - pixels[:, 0]
    engines = on_every_isa(net, "latent8", monkeypatch, state)

    first, second = assert_equal_steps(engines, [(u, labels)] * 2)[0]["blocks"]

    assert first["sums"][0].tolist() == [0, 0]
    assert not first["grad_y"][:, 0].any()
    assert first["grad_y"][:, 1].any()
    # The second layer reads the sign of beta from it, wherever it looks.
    read = second["grad_weights"].reshape(4, -1, 3)[:, :, 0]
    assert np.all(read == (1 if beta >= 0 else -1) * second["grad_y"].sum(axis=0)[:, None])
    for engine in engines.values():
        weights = engine.state()["conv1.weight"]
        assert np.array_equal(weights[0], state["conv1.weight"][0])
        assert not np.array_equal(weights[1], state["conv1.weight"][1])
        if abs(beta) > 1:  # the straight-through rule passes |x| <= 1 only
            assert engine.state()["norm1.beta"][0] == np.float32(beta)


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_equal_images_without_edges_are_constant_everywhere(padding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = case(5, (8, 7, 3), Conv(20, padding=padding, before=PAIR), Conv(18, (2, 2), after=(2, 1)), 4)
    u = np.full((5, net.spec.input_features), 200, np.uint8)
    labels = np.array([0, 1, 2, 3, 0], np.int32)

    traces = assert_equal_steps(on_every_isa(net, "latent8", monkeypatch), [(u, labels)] * 2)

    for trace in traces:
        assert np.isfinite(trace["loss"])
        deviations = trace["blocks"][0]["sums"][:, 1]
        assert deviations.any() == (padding == "same")  # the zeros around the image are edges


@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
def test_equal_labels_are_trained_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = case(10, (8, 8, 2), Conv(20, padding="same", before=PAIR), Conv(18, after=PAIR), 5)
    batch = random_batch(net, 3)[0], np.full(10, 3, np.int32)
    engines = on_every_isa(net, name, monkeypatch)

    losses = [trace["loss"] for trace in assert_equal_steps(engines, [batch] * 3)]
    engine = next(iter(engines.values()))
    losses += [engine.step().loss for _ in range(200)]

    assert np.all(np.isfinite(losses))
    assert losses[-1] < losses[0]  # beta at least can say which label it is


# The largest sums.


@pytest.mark.parametrize(
    ("geometry", "weight"), [(geometry, 127) for geometry in GEOMETRIES] + [(geometry, -127) for geometry in SOME]
)
def test_equal_weights_on_black_and_white_reach_the_largest_products(
    geometry: str, weight: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = GEOMETRIES[geometry]
    state = build(net).state()
    for block in net.spec.blocks:
        state[f"{block.linear}.weight"][:] = weight
    batches = [random_batch(net, step) for step in range(2)]
    for u, _ in batches:
        u[:] = np.where(u < 128, 0, 255)
        u[0], u[-1] = 255, 0

    trace = assert_equal_steps(on_every_isa(net, "latent8", monkeypatch, state), batches)[0]

    first = net.spec.blocks[0]
    if net.batch_size > 1 and first.pad_height + first.pad_width == 0 and first.pool != "before_norm":
        y = trace["blocks"][0]["y"]
        assert (y.min(), y.max()) == (-255 * first.fan_in, 255 * first.fan_in)


@pytest.mark.parametrize("layer", ["dense", "convolution"])
def test_the_widest_first_layer_is_exact_and_a_wider_one_is_refused(
    layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 127 * 255 * 65,536 just fits 32 bits, and the gradient goes along with the products: the sum of two does not.
    is_dense = layer == "dense"
    net = case(6, (256, 256), 2) if is_dense else case(6, (256, 257), Conv(2, (256, 256)), 2)
    wider = network((1, 65_537), 2) if is_dense else network((256, 258), Conv(2, (256, 257)), 2)
    first = net.spec.blocks[0]
    state = build(net).state()
    state[f"{first.linear}.weight"][0] = 127
    state[f"{first.linear}.weight"][1] = -127
    u = np.repeat(np.array([255, 0] * 3, np.uint8)[:, None], net.spec.input_features, axis=1)
    u[:, 0] = [1, 2, 3, 250, 251, 252]  # two values alone would have no gradient
    labels = np.array([1, 0] * 3, np.int32)

    trace = assert_equal_steps(on_every_isa(net, "latent8", monkeypatch, state), [(u, labels)] * 3)[0]

    assert first.fan_in == 65_536
    assert np.abs(trace["blocks"][0]["y"]).min() > 255 * 65_000
    with pytest.raises(SpecError, match=rf"{first.linear}.*65536"):
        plan_memory(wider, batch_size=1)


@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
def test_a_first_weight_gradient_beyond_32_bits_is_exact(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient that is the label's sign at every pixel, on inputs that are the label's sign at every pixel.

    Channels 0 and 1 of the input are the label and cancel in the products; channel 2 makes those +255 or -255, half of
    each but for a pixel, by which samples differ. So the mask passes everything, nothing is common to take away, and
    every product in the weight gradient has one sign.
    """
    size, pixels = 36, 64 * 64
    net = case(size, (64, 64, 3), Conv(2, (1, 1)), 2)
    state = build(net).state()
    state["conv1.weight"][:] = np.array([50, -50, 50])
    state["dense2.weight"][0], state["dense2.weight"][1] = 50, -50
    labels = np.arange(size, dtype=np.int32) % 2
    u = np.empty((size, pixels, 3), np.uint8)
    u[:, :, :2] = np.where(labels == 1, 255, 0)[:, None, None]
    white = pixels // 2 + np.where(np.arange(size) // 2 % 2 == 1, 1, -1)
    u[:, :, 2] = np.where(np.arange(pixels) < white[:, None], 255, 0)

    trace = assert_equal_steps(on_every_isa(net, name, monkeypatch, state), [(u.reshape(size, -1), labels)])[0]

    assert 127 * 255 * size * pixels >> 1 > np.iinfo(np.int32).max  # so it is halved twice
    assert np.abs(trace["blocks"][0]["grad_weights"]).max() << 2 > np.iinfo(np.int32).max


# Memory.


def is_persistent(entry: PlanEntry) -> bool:
    return {"forward", "loss", "normalise", "weights", "inputs"} <= set(entry.phases)


@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
@pytest.mark.parametrize("threads", [1, 3])
def test_no_two_tensors_that_live_at_once_overlap(name: str, threads: int) -> None:
    for net in GEOMETRIES.values():
        preset = resolve_preset("bitfleet", name)
        plan = plan_memory(net.spec, batch_size=net.batch_size, preset=preset, threads=threads)
        assert_no_overlap(plan)


@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
@pytest.mark.parametrize("threads", [1, 2])
def test_every_entry_of_the_plan_is_written(name: str, threads: int) -> None:
    # Both pools, padding, bytes and bits to gather, and enough channels for a second thread.
    net = case(20, (9, 9, 3), Conv(64, padding="same", before=PAIR), Conv(64, padding="same", after=PAIR), 64, 10)
    written: dict[str, bool] = {}
    for poison in (0x5A, 0xA5):
        engine = Engine(net.spec, batch_size=20, preset=resolve_preset("bitfleet", name), threads=threads)
        engine.arena[:] = poison
        engine.initialise()
        for step in range(3):
            give(engine, random_batch(net, step))
            engine.step()
        for entry in engine.plan.entries:
            changed = engine.arena[entry.offset : entry.offset + entry.num_bytes] != poison
            written[entry.name] = written.get(entry.name, False) or bool(changed.any())

    assert all(written.values()), [entry for entry, done in written.items() if not done]


@pytest.mark.parametrize(("geometry", "name"), with_optimizers(list(GEOMETRIES)))
def test_a_step_reads_nothing_that_it_has_not_written(geometry: str, name: str) -> None:
    net = GEOMETRIES[geometry]
    digests = []
    for poison in (0x5A, 0xC3):
        engine = Engine(net.spec, batch_size=net.batch_size, preset=resolve_preset("bitfleet", name), seed=7)
        kept = np.zeros(engine.plan.peak_bytes, bool)
        for entry in filter(is_persistent, engine.plan.entries):
            kept[entry.offset : entry.offset + entry.num_bytes] = True
        engine.arena[:] = poison
        engine.initialise()
        for step in range(3):
            engine.arena[~kept] = poison + step  # what a step leaves behind is of no use to the next
            give(engine, random_batch(net, step))
            engine.step()
        digests.append(weights_digest(net.spec, engine.state()))

    assert digests[0] == digests[1]

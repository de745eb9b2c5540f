"""The presets `standard` and `paper` against their NumPy oracle, bit for bit, and what they promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bnncore.data import open_dataset
from bnncore.engine import Engine, isa_available
from bnncore.memory import count_layers, paper_memory, standard_memory
from bnncore.optimizer import FLOAT_OPTIMIZERS, resolve_preset
from bnncore.plan import PlanEntry, plan_memory
from bnncore.reference.maps import patches
from bnncore.reference.published import PublishedReference
from bnncore.state import weights_digest
from bnncore.training import batches, evaluate
from bnncore.zoo import binarynet, cnv, mlp
from tests.bnncore.engine_cases import GEOMETRIES, Case, Conv, case, gradients, random_batch

PRESETS = ("standard", "paper")
NETS: dict[str, Case] = {
    **{name: net for name, net in GEOMETRIES.items() if not name.startswith("tiles")},
    "dense": Case(mlp((7, 9), (63, 65, 33), 10), 21),
    "one dense": Case(mlp((5,), (), 3), 4),
    "one sample, dense": Case(mlp((7, 9), (63, 65), 10), 1),
    "mlp": Case(mlp((28, 28)), 30),
}
FEW = ("same", "stride 2, odd map", "pool before the norm", "rest dropped after", "wide fan-in", "dense")


def build(net: Case, preset: str, name: str = "adam", *, threads: int = 1, seed: int = 7) -> Engine:
    engine = Engine(
        net.spec, batch_size=net.batch_size, preset=resolve_preset(preset, name), seed=seed, threads=threads
    )
    engine.initialise()
    return engine


def give(engine: Engine, batch: tuple[np.ndarray, np.ndarray]) -> None:
    engine.input[:], engine.labels[:] = batch


def assert_equals_oracle(engine: Engine, oracle: PublishedReference, where: str) -> None:
    state = engine.state()
    for i, block in enumerate(engine.spec.blocks):
        grad, beta_grad = gradients(engine, i)
        assert np.array_equal(grad, oracle.gradients[i]), f"{where}, gradient of {block.linear}"
        assert np.array_equal(beta_grad, oracle.beta_gradients[i]), f"{where}, gradient of {block.norm}.beta"
        weights = state[f"{block.linear}.weight"].reshape(grad.shape)
        assert np.array_equal(weights, oracle.weights[i]), f"{where}, {block.linear}"
        for name, values in (("beta", oracle.beta), ("mean", oracle.mean), ("mean_abs_dev", oracle.deviation)):
            assert np.array_equal(state[f"{block.norm}.{name}"], values[i]), f"{where}, {block.norm}.{name}"


def oracle_of(engine: Engine) -> PublishedReference:
    preset = engine.preset
    return PublishedReference(engine.spec, preset.name, preset.optimizer, engine.state(), engine.seed)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("net", NETS)
def test_three_steps_give_the_oracles_gradients_and_parameters(preset: str, net: str) -> None:
    engine = build(NETS[net], preset)
    oracle = oracle_of(engine)

    for step in range(3):
        batch = random_batch(NETS[net], step)
        give(engine, batch)
        result = engine.step(1 - 0.1 * step)

        assert (result.loss, result.correct) == oracle.step(*batch, 1 - 0.1 * step)
        assert_equals_oracle(engine, oracle, f"step {step}")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", FLOAT_OPTIMIZERS)
def test_thirty_steps_end_in_the_oracles_weights(preset: str, name: str) -> None:
    net = NETS["pool before the norm"]
    engine = build(net, preset, name)
    oracle = oracle_of(engine)

    for step in range(30):
        batch = random_batch(net, step % 3)
        give(engine, batch)
        engine.step()
        oracle.step(*batch)

    assert_equals_oracle(engine, oracle, name)
    assert all(np.abs(gradient).max() > 0 for gradient in oracle.gradients)


@pytest.mark.parametrize("net", ["one dense", "one convolution", "one strided convolution"])
def test_a_gradient_of_standard_is_the_slope_of_its_loss(net: str) -> None:
    engine, block = build(NETS[net], "standard"), NETS[net].spec.blocks[0]
    u, labels = random_batch(NETS[net], 0)
    shape = (len(u), block.in_height, block.in_width, block.in_channels)
    kernel, padding = (block.kernel_height, block.kernel_width), (block.pad_height, block.pad_width)
    read = patches(2.0 * u.reshape(shape) - 255, kernel, block.stride, padding).reshape(len(u), -1)
    signs = np.where(engine.state()[f"{block.linear}.weight"] < 0, -1.0, 1.0).reshape(block.out_channels, -1)

    def loss(weights: np.ndarray) -> float:
        y = read @ weights.T
        x = (y - y.mean(axis=0)) / y.std(axis=0)
        return float(np.mean(np.log(np.exp(x).sum(axis=1)) - x[np.arange(len(x)), labels]))

    give(engine, (u, labels))
    engine.step()

    step, slopes = 1e-4, np.empty_like(signs)
    for place in np.ndindex(signs.shape):
        change = np.zeros_like(signs)
        change[place] = step
        slopes[place] = (loss(signs + change) - loss(signs - change)) / (2 * step)
    found, _ = gradients(engine, 0)
    # Float32 and the differences both err by about 1e-6 of the largest slope.
    assert np.abs(found - slopes).max() < 2e-5 * np.abs(slopes).max()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("net", FEW)
def test_the_digest_depends_on_no_thread_and_no_instruction_set(
    preset: str, net: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = {}
    for isa in isa_available():
        monkeypatch.setenv("BITFLEET_ISA", isa)
        for threads in (1, 2, 3):
            engine = build(NETS[net], preset, threads=threads)
            for step in range(3):
                give(engine, random_batch(NETS[net], step))
                engine.step()
            digests[isa, threads] = weights_digest(engine.spec, engine.state())

    assert len(set(digests.values())) == 1, digests
    assert weights_digest(engine.spec, build(NETS[net], preset, seed=8).state()) != digests["portable", 1]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_batch_of_equal_samples_is_constant_and_teaches_beta_alone(preset: str) -> None:
    net = NETS["dense"]
    engine = build(net, preset)
    before = engine.state()
    engine.input[:] = random_batch(net, 0)[0][0]
    engine.labels[:] = 3

    engine.step()

    after = engine.state()
    if preset == "standard":  # the sign of a zero gradient is a step all the same
        assert all(np.array_equal(before[b.linear + ".weight"], after[b.linear + ".weight"]) for b in net.spec.blocks)
    assert np.array_equal(np.sign(after["norm4.beta"]), np.where(np.arange(10) == 3, 1, -1))
    assert all(np.isfinite(array).all() for array in after.values())
    assert (after["norm1.mean_abs_dev"] == 0).all()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("net", ["dense", "pool after the sign", "pool before the norm", "one sample"])
def test_equal_labels_and_extreme_pixels_stay_finite(preset: str, net: str) -> None:
    engine = build(NETS[net], preset)

    for step in range(40):
        u, _ = random_batch(NETS[net], step)
        give(engine, (np.where(u < 128, 0, 255).astype(np.uint8), np.zeros(len(u), np.int32)))
        result = engine.step(20.0)

        assert np.isfinite(result.loss)
    state = engine.state()
    assert all(np.isfinite(array).all() for array in state.values())
    assert all(np.abs(state[block.linear + ".weight"]).max() <= 1 for block in engine.spec.blocks)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", FLOAT_OPTIMIZERS)
def test_training_learns_the_digits(preset: str, name: str) -> None:
    net = Case(mlp((8, 8), (128, 128), 10), 100)
    engine = build(net, preset, name)
    with open_dataset("digits", None, split="train") as training, open_dataset("digits", None, split="test") as test:
        for epoch in range(12):
            for rows in batches(training.num_examples, net.batch_size, seed=0, epoch=epoch):
                training.read(rows, engine.input)
                engine.labels[:] = training.labels[rows]
                engine.step()

        assert evaluate(engine, test).accuracy > 90


# Memory.


def is_persistent(entry: PlanEntry) -> bool:
    return len(entry.phases) == 5


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("threads", [1, 3])
def test_no_two_tensors_that_live_at_once_overlap(preset: str, threads: int) -> None:
    for net in NETS.values():
        plan = plan_memory(net.spec, batch_size=net.batch_size, preset=resolve_preset(preset), threads=threads)

        for i, a in enumerate(plan.entries):
            assert a.offset % 64 == 0
            assert a.offset + a.num_bytes <= plan.peak_bytes
            for b in plan.entries[:i]:
                apart = a.offset + a.num_bytes <= b.offset or b.offset + b.num_bytes <= a.offset
                assert apart or not set(a.phases) & set(b.phases), f"{a.name} and {b.name}"


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("net", FEW)
def test_a_step_reads_nothing_that_it_has_not_written(preset: str, net: str) -> None:
    digests = []
    for poison in (0x5A, 0xC3):
        engine = build(NETS[net], preset)
        kept = np.zeros(engine.plan.peak_bytes, bool)
        for entry in engine.plan.entries:
            if entry.role in ("weights", "momenta", "norm", "input"):
                kept[entry.offset : entry.offset + entry.num_bytes] = True
        for step in range(3):
            engine.arena[~kept] = poison + step  # what a step leaves behind is of no use to the next
            give(engine, random_batch(NETS[net], step))
            engine.step()
        digests.append(weights_digest(engine.spec, engine.state()))

    assert digests[0] == digests[1]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_entry_of_the_plan_is_written(preset: str) -> None:
    pair = (2, 2)
    net = case(20, (9, 9, 3), Conv(64, padding="same", before=pair), Conv(64, padding="same", after=pair), 64, 10)
    engine = Engine(net.spec, batch_size=20, preset=resolve_preset(preset), threads=2)
    engine.arena[:] = 0x5A
    engine.initialise()
    for step in range(3):
        give(engine, random_batch(net, step))
        engine.step()

    untouched = [e.name for e in engine.plan.entries if (engine.arena[e.offset :][: e.num_bytes] == 0x5A).all()]
    assert untouched == []


@pytest.mark.parametrize("build_spec", [mlp, cnv, binarynet])
def test_the_plans_are_the_published_models(build_spec: Any) -> None:
    spec, scratch = build_spec(), 2**19
    counts = count_layers(spec)
    found = {name: plan_memory(spec, batch_size=100, preset=resolve_preset(name)).peak_bytes for name in PRESETS}

    # Scratch is half a MiB, more for the map of one sample in float32; `paper` adds its activation mask, one bit an
    # element that is normalised, and the input in bytes.
    normalised = sum(b.norm_height * b.norm_width * b.out_channels for b in spec.blocks)
    widest = max(b.in_features for b in spec.blocks[1:])
    extra = 100 * (normalised // 8 + spec.input_features) + 4 * widest + scratch
    assert found["standard"] <= standard_memory(counts, 100).total_bytes + scratch
    assert (
        paper_memory(counts, 100).total_bytes - 2**20 <= found["paper"] <= paper_memory(counts, 100).total_bytes + extra
    )

"""Whole numbers and their sum: exact, in rings that are just wide enough, with bad input refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bnncore.codec import PayloadKind, SignTensor, get_codec, payload_digest
from bnncore.codec.difference import statistic_bounds
from bnncore.data import open_dataset, write_idx
from bnncore.engine import Engine
from bnncore.errors import ConfigurationError, PayloadError, ShapeError
from bnncore.federated import EngineShelf, LocalTask, LocalTraining, SummedUpdates, train_locally
from bnncore.secure.metrics import Metrics
from bnncore.secure.parts import WeightForm
from bnncore.secure.ring import RingVector
from bnncore.secure.scales import scales_from_bytes, scales_to_bytes
from bnncore.secure.values import Told, ValueForm, ValueSum, Vector
from bnncore.spec import ModelSpec
from bnncore.zoo import mlp, resnete18
from tests.bnncore.random_differences import random_signs
from tests.bnncore.random_states import specs

SPEC = mlp(input_shape=(4, 4), widths=(24,), classes=3)
FORMS: tuple[WeightForm, ...] = ("signs", "fixed")


def random_told(form: ValueForm, seed: int) -> Told:
    """What a device may tell, over the whole range of each tensor and beyond what is clipped."""
    generator = np.random.default_rng(seed)
    bounds = statistic_bounds(form.spec)
    told: dict[str, SignTensor | NDArray[np.int16] | NDArray[np.float32]] = {}
    for tensor in form.spec.tensors:
        if tensor.role == "weight":
            signs = random_signs(tensor.shape, int(generator.integers(1 << 30)))
            steps = generator.integers(-254, 255, tensor.shape, dtype=np.int16)
            told[tensor.name] = signs if form.weights == "signs" else steps
        elif tensor.is_statistic:
            values = generator.uniform(-1, 1, tensor.shape).astype(np.float32) * bounds.get(tensor.name, 1000)
            told[tensor.name] = np.abs(values) if tensor.role == "mean_abs_dev" else values
        else:
            told[tensor.name] = generator.normal(0, 3, tensor.shape).astype(np.float32)
    return told


def random_metrics(seed: int) -> Metrics:
    generator = np.random.default_rng(seed)
    examples = int(generator.integers(0, 5000))
    correct = int(generator.integers(0, examples + 1))
    return Metrics(float(generator.gamma(1)), float(generator.random()), examples, correct, float(generator.gamma(1)))


def vectors_of(form: ValueForm, count: int, seed: int) -> list[Vector]:
    return [form.encode(random_told(form, seed + n), random_metrics(seed + n)) for n in range(count)]


def sum_in_ring(form: ValueForm, vectors: list[Vector], num_members: int) -> ValueSum:
    layout = form.layout(num_members)
    total = RingVector.zeros(layout)
    for vector in vectors:
        total.add(vector.to_ring(layout))
    return form.decode_sum(total, len(vectors))


@settings(max_examples=40, deadline=None)
@given(
    spec=specs,
    kind=st.sampled_from(("update", "statistics")),
    weights=st.sampled_from(FORMS),
    clip=st.integers(1, 127),
    count=st.integers(1, 9),
    lost=st.integers(0, 3),
    seed=st.integers(0, 1 << 30),
)
def test_the_sum_in_the_ring_is_the_sum_of_the_numbers(
    spec: ModelSpec, kind: PayloadKind, weights: WeightForm, clip: int, count: int, lost: int, seed: int
) -> None:
    form = ValueForm(spec, kind, weights=weights, clip=clip)
    vectors = vectors_of(form, count, seed)

    found = sum_in_ring(form, vectors, count + lost)

    for part in form.parts:
        values = [vector.values[part.name] for vector in vectors]
        if part.is_bits:
            values = [np.unpackbits(value, bitorder="little") for value in values]
        np.testing.assert_array_equal(found.sums[part.name], np.sum(values, axis=0, dtype=np.int64), part.name)


def test_each_tensor_comes_back_as_the_sum_of_what_was_told() -> None:
    form = ValueForm(SPEC, "update", weights="fixed", clip=15)
    told = [random_told(form, seed) for seed in range(5)]

    found = sum_in_ring(form, [form.encode(each, Metrics()) for each in told], 5).tensors()

    assert list(found) == [tensor.name for tensor in SPEC.tensors]
    for tensor in SPEC.tensors:
        unit = form.units[tensor.name]
        if tensor.role == "weight":
            expected = sum(np.clip(np.asarray(each[tensor.name]), -15, 15).astype(np.int64) for each in told) * 256
        else:
            limit = np.inf if tensor.is_statistic else 8.0
            exact = [np.clip(np.asarray(each[tensor.name]), -limit, limit).astype(np.float64) for each in told]
            np.testing.assert_allclose(found[tensor.name] / unit, np.sum(exact, axis=0), atol=2.5 / unit, rtol=0)
            continue
        np.testing.assert_array_equal(found[tensor.name], expected)


def test_signs_add_up_under_the_scale_common_to_the_cohort() -> None:
    form = ValueForm(SPEC, "update")
    told = [random_told(form, seed) for seed in range(4)]

    found = sum_in_ring(form, [form.encode(each, Metrics()) for each in told], 4)

    name = "dense1.weight"
    signs = [held for each in told if isinstance(held := each[name], SignTensor)]
    flags = [np.sign(replace(each, scales=np.ones_like(each.scales)).dense()) for each in signs]
    np.testing.assert_array_equal(found.signs[name], np.sum(flags, axis=0))
    mean = np.floor(np.mean([each.scales for each in signs], axis=0) + 0.5).astype(np.uint16)
    np.testing.assert_array_equal(found.mean_scales[name], mean)
    np.testing.assert_array_equal(found.tensors()[name], found.signs[name] * mean.astype(np.int64)[:, None])
    agreed = {tensor: np.full_like(scale, 3) for tensor, scale in found.mean_scales.items()}
    np.testing.assert_array_equal(found.tensors(agreed)[name], found.signs[name] * 3)


@pytest.mark.parametrize("num_members", [1, 2, 3, 7, 8, 50, 1000])
@pytest.mark.parametrize("weights", FORMS)
def test_a_segment_is_as_wide_as_the_largest_sum_and_no_wider(weights: WeightForm, num_members: int) -> None:
    form = ValueForm(SPEC, "update", weights=weights)

    layout = form.layout(num_members)

    for part, segment in zip(form.parts, layout.segments, strict=True):
        largest = num_members * (part.high - part.low)
        assert 2 ** (segment.bits - 1) <= largest < 2**segment.bits
    assert layout.segments[0].bits == (num_members if weights == "signs" else 30 * num_members).bit_length()


@pytest.mark.parametrize("num_members", [0, 1 << 31])
def test_a_cohort_that_no_ring_holds_is_refused(num_members: int) -> None:
    with pytest.raises(PayloadError, match=f"the sum of {num_members} updates"):
        ValueForm(SPEC, "update").layout(num_members)


def test_the_extreme_numbers_of_a_full_cohort_do_not_wrap() -> None:
    form = ValueForm(SPEC, "update", weights="fixed", clip=15)
    for sign in (1, -1):
        told: Told = {
            tensor.name: np.full(tensor.shape, sign * 100, np.int16 if tensor.role == "weight" else np.float32)
            if not tensor.is_statistic
            else np.full(tensor.shape, statistic_bounds(SPEC)[tensor.name], np.float32)
            for tensor in SPEC.tensors
        }
        vector = form.encode(told, Metrics(1e9, 1.0, 2**32 - 1, 2**32 - 1, 1e9))

        found = sum_in_ring(form, [vector] * 7, 7)

        assert set(np.unique(found.sums["dense1.weight"])) == {sign * 7 * 15}
        assert set(np.unique(found.sums["reals"])) == {sign * 7 * 2**19}
        assert found.metrics.validation_examples == 7 * (2**32 - 1)


def test_measurements_come_back_as_means_of_the_cohort() -> None:
    form = ValueForm(SPEC, "statistics")
    measured = [Metrics(0.5, 0.25, 10, 5, 2.0), Metrics(1.5, 0.75, 30, 15, 1.0)]

    found = sum_in_ring(form, [form.encode(random_told(form, 0), each) for each in measured], 2).metrics

    assert (found.loss, found.accuracy) == (1.0, 0.5)
    assert (found.validation_examples, found.validation_correct, found.validation_loss) == (40, 20, 1.25)


@settings(max_examples=20, deadline=None)
@given(spec=specs, weights=st.sampled_from(FORMS), seed=st.integers(0, 1 << 30))
def test_the_file_of_a_vector_is_read_back_and_no_damage_passes(
    spec: ModelSpec, weights: WeightForm, seed: int
) -> None:
    form = ValueForm(spec, "update", weights=weights)
    (vector,) = vectors_of(form, 1, seed)
    data = vector.to_bytes()

    again = Vector.from_bytes(form, data)

    for part in form.parts:
        np.testing.assert_array_equal(again.values[part.name], vector.values[part.name])
    position = seed % len(data)
    damaged = bytearray(data)
    damaged[position] ^= 1
    for bad in (bytes(damaged), data[:position], data + b"\0"):
        with pytest.raises(PayloadError):
            Vector.from_bytes(form, bad)


def test_a_vector_of_another_form_is_refused() -> None:
    form = ValueForm(SPEC, "update", weights="fixed", clip=15)
    data = vectors_of(form, 1, 0)[0].to_bytes()

    with pytest.raises(PayloadError, match="another form"):
        Vector.from_bytes(replace(form, clip=14), data)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["norm1.beta", "norm1.mean"])
def test_what_is_no_number_is_refused(name: str, bad: float) -> None:
    form = ValueForm(SPEC, "update", weights="fixed")
    told = dict(random_told(form, 0))
    values = np.asarray(told[name]).copy()
    values[-1] = bad

    with pytest.raises(PayloadError, match=name):
        form.encode({**told, name: values}, Metrics())


def test_a_statistic_beyond_what_the_layer_can_give_is_refused() -> None:
    form = ValueForm(SPEC, "statistics")
    told = dict(random_told(form, 0))
    told["norm1.mean"] = np.full(24, 2.0 * statistic_bounds(SPEC)["norm1.mean"], np.float32)

    with pytest.raises(PayloadError, match=r"norm1\.mean must lie within"):
        form.encode(told, Metrics())


def test_tensors_of_another_kind_are_refused() -> None:
    signs, fixed = (ValueForm(SPEC, "update", weights=weights) for weights in FORMS)
    told = random_told(signs, 0)

    with pytest.raises(ShapeError, match=r"dense1\.weight must be int16"):
        fixed.encode(told, Metrics())
    with pytest.raises(ShapeError, match="without mask"):
        signs.encode({**told, "dense1.weight": random_signs((24, 16), 0, density=0.5)}, Metrics())
    with pytest.raises(ShapeError, match=r"norm1\.beta"):
        signs.encode({name: array for name, array in told.items() if name != "norm1.beta"}, Metrics())


def test_a_sum_that_no_cohort_has_is_refused() -> None:
    form = ValueForm(SPEC, "update", weights="fixed", clip=15)
    layout = form.layout(4)
    ring = RingVector.zeros(layout)
    ring.put("dense1.weight", np.full(24 * 16, 2 * 30 + 1, np.int64))

    with pytest.raises(PayloadError, match="2 updates can add up to"):
        form.decode_sum(ring, 2)


@pytest.mark.parametrize(
    "metrics",
    [
        Metrics(loss=float("nan")),
        Metrics(loss=-1.0),
        Metrics(accuracy=1.5),
        Metrics(validation_correct=1),
        Metrics(float("inf")),
    ],
)
def test_measurements_that_make_no_sense_are_refused(metrics: Metrics) -> None:
    with pytest.raises(PayloadError):
        metrics.to_numbers()


@pytest.mark.parametrize(
    ("kind", "weights", "clip"),
    [("model", "signs", 1), ("update", "fixed", 0), ("update", "fixed", 128), ("update", "votes", 1)],
)
def test_forms_that_do_not_exist_are_refused(kind: PayloadKind, weights: WeightForm, clip: int) -> None:
    with pytest.raises(ConfigurationError):
        ValueForm(SPEC, kind, weights=weights, clip=clip)


def test_local_tensors_are_not_told() -> None:
    form = ValueForm(SPEC, "update", frozenset({"norm1.beta", "dense2.weight"}))
    (vector,) = vectors_of(form, 1, 0)

    found = sum_in_ring(form, [vector], 1).tensors()

    assert set(found) == {tensor.name for tensor in SPEC.tensors} - {"norm1.beta", "dense2.weight"}
    assert set(form.units) == set(found)


def test_real_layers_are_told_too() -> None:
    form = ValueForm(resnete18(input_shape=(32, 32, 3), classes=4, widths=(4, 4, 4, 4)), "update")
    told = [random_told(form, seed) for seed in range(2)]

    found = sum_in_ring(form, [form.encode(each, Metrics()) for each in told], 2)

    for tensor in form.spec.tensors:
        if tensor.role == "weight":
            continue
        unit = form.units[tensor.name]
        limit = np.inf if tensor.is_statistic else 8.0
        exact = sum(np.clip(np.asarray(each[tensor.name], np.float64), -limit, limit) for each in told)
        np.testing.assert_allclose(found.tensors()[tensor.name] / unit, exact, atol=1 / unit, rtol=0)


def test_agreed_scales_travel_as_two_bytes_a_row() -> None:
    form = ValueForm(SPEC, "update", frozenset({"dense2.weight"}))
    scales = sum_in_ring(form, vectors_of(form, 3, 0), 3).mean_scales

    data = scales_to_bytes(SPEC, scales, form.local)

    assert len(data) == 2 * 24
    again = scales_from_bytes(SPEC, data, form.local)
    assert list(again) == ["dense1.weight"]
    np.testing.assert_array_equal(again["dense1.weight"], scales["dense1.weight"])
    assert scales_from_bytes(SPEC, b"") == {}
    with pytest.raises(PayloadError, match="54 bytes"):
        scales_from_bytes(SPEC, data)


def local_task(weights: WeightForm, *, steps: int = 9, scales: bytes = b"") -> tuple[LocalTask, bytes]:
    engine = Engine(SPEC, batch_size=1)
    engine.initialise(7)
    model = get_codec("int8").encode(SPEC, engine.state(), kind="model")
    training = LocalTraining("bitfleet", "", 10, steps, 1.0, seed=3, statistics_batches=2)
    task = LocalTask(
        device_id="bird-1",
        round_number=2,
        model_digest=payload_digest(model),
        initial_seed=7,
        spec_json=SPEC.to_json(),
        down_codec="int8",
        up_codec="sign" if weights == "signs" else "int8",
        classes=("c", "a", "b"),
        training=training,
        summed=SummedUpdates(weights, scales=scales),
    )
    return task, model


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    write_idx(tmp_path, random.integers(0, 256, (50, 4, 4), np.uint8), np.arange(50) % 3, "train", classes=list("abc"))
    return tmp_path


@pytest.mark.parametrize("weights", FORMS)
def test_a_device_trains_as_always_and_leaves_whole_numbers(data_root: Path, weights: WeightForm) -> None:
    task, model = local_task(weights)
    with open_dataset("idx", data_root, split="train") as dataset:
        plain = train_locally(replace(task, summed=None), model, dataset, EngineShelf())
        update = train_locally(task, model, dataset, EngineShelf())
    form = ValueForm(SPEC, "update", weights=weights)

    found = sum_in_ring(form, [Vector.from_bytes(form, update.payload)], 1)

    sent = get_codec(task.up_codec).decode(SPEC, plain.payload, kind="update")
    told = found.tensors()["dense1.weight"]
    if weights == "signs":
        signs = sent["dense1.weight"]
        assert isinstance(signs, SignTensor)
        np.testing.assert_array_equal(told, signs.dense())
    else:
        start = get_codec("int8").decode(SPEC, model, kind="model")["dense1.weight"]
        difference = np.asarray(sent["dense1.weight"], np.int64) - np.asarray(start)
        np.testing.assert_array_equal(told, np.clip(difference, -15, 15) * 256)
    assert abs(found.metrics.loss - update.loss) < 2**-16
    assert update.local_state is not None


def test_what_is_owed_counts_from_the_agreed_scale(data_root: Path) -> None:
    agreed = {"dense1.weight": np.full(24, 700, np.uint16), "dense2.weight": np.full(3, 90, np.uint16)}
    own, model = local_task("signs")
    common, _ = local_task("signs", scales=scales_to_bytes(SPEC, agreed))
    with open_dataset("idx", data_root, split="train") as dataset:
        before = train_locally(own, model, dataset, EngineShelf())
        after = train_locally(common, model, dataset, EngineShelf())
    assert before.local_state is not None
    assert after.local_state is not None
    form = ValueForm(SPEC, "update")
    values = sum_in_ring(form, [Vector.from_bytes(form, before.payload)], 1)

    assert after.payload == before.payload
    for name, scale in agreed.items():
        own_told = values.tensors()[name]
        x = np.round((own_told + 256.0 * before.local_state.feedback[name]) / 256)  # owed is x - told, to half a step
        expected = x - values.signs[name] * (scale.astype(float)[:, None] / 256)
        assert np.abs(after.local_state.feedback[name] - expected).max() <= 1.5


def test_a_closing_round_tells_statistics_alone(data_root: Path) -> None:
    task, model = local_task("signs", steps=0)
    with open_dataset("idx", data_root, split="train") as dataset:
        update = train_locally(task, model, dataset, EngineShelf())
    form = ValueForm(SPEC, "statistics")

    found = sum_in_ring(form, [Vector.from_bytes(form, update.payload)], 1)

    assert set(found.tensors()) == {tensor.name for tensor in SPEC.tensors if tensor.is_statistic}
    assert (found.signs, found.mean_scales) == ({}, {})

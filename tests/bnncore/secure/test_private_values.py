"""Sums under differential privacy: no device can exceed its bound, and the noise is what the account says."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bnncore.errors import ConfigurationError, PayloadError
from bnncore.federated.summed import SummedUpdates, tell_whole
from bnncore.secure.metrics import Metrics
from bnncore.secure.noise import SeededRandomness
from bnncore.secure.parts import WeightForm
from bnncore.secure.privacy import Privacy, adapted_clip, effective_multiplier
from bnncore.secure.ring import RingVector
from bnncore.secure.rounding import Told
from bnncore.secure.scales import public_scales
from bnncore.secure.values import ValueForm, ValueSum, Vector
from bnncore.spec import ModelSpec
from bnncore.zoo import mlp, resnete18
from tests.bnncore.random_states import random_state, specs

SPEC = mlp(input_shape=(4, 4), widths=(24,), classes=3)
FORMS: tuple[WeightForm, ...] = ("signs", "fixed")
SOME = Privacy("distributed", 2.0, noisy_members=5, clip=40.0)


def private_form(weights: WeightForm, privacy: Privacy = SOME, spec: ModelSpec = SPEC) -> ValueForm:
    return ValueForm(spec, "update", weights=weights, privacy=privacy)


def steps_told(spec: ModelSpec, seed: int, size: float = 1.0) -> Told:
    """Any differences at all: of the size that training gives at 1, beyond all bounds at 1000."""
    generator = np.random.default_rng(seed)
    told: dict[str, NDArray[np.int16] | NDArray[np.float32]] = {}
    for tensor in spec.tensors:
        if tensor.role == "weight":
            steps = np.clip(generator.normal(0, 3 * size, tensor.shape), -254, 254)
            told[tensor.name] = np.rint(steps).astype(np.int16)
        else:
            told[tensor.name] = generator.normal(0, 0.01 * size, tensor.shape).astype(np.float32)
    return told


def sum_in_ring(form: ValueForm, vectors: list[Vector], num_members: int, seed: int) -> ValueSum:
    layout = form.layout(num_members)
    total = RingVector.zeros(layout)
    for number, vector in enumerate(vectors):
        total.add(vector.to_ring(layout, SeededRandomness(seed + number)))
    return form.decode_sum(total, len(vectors))


@settings(max_examples=60, deadline=None)
@given(
    spec=specs,
    weights=st.sampled_from(FORMS),
    multiplier=st.floats(0.05, 50),
    members=st.integers(1, 20_000),
    clip=st.floats(0.5, 5000),
    size=st.sampled_from((0.0, 0.5, 1.0, 30.0, 1e4, 1e30)),
    seed=st.integers(0, 1 << 30),
)
def test_whatever_a_device_tells_is_within_one_sensitivity(
    spec: ModelSpec, weights: WeightForm, multiplier: float, members: int, clip: float, size: float, seed: int
) -> None:
    form = private_form(weights, Privacy("distributed", multiplier, members, clip), spec)

    vector = form.encode(steps_told(spec, seed, size), Metrics(0.3, 0.5))

    share = 0.0
    for part in form.parts:
        values = vector.values[part.name].astype(object)
        assert max(map(abs, values)) <= part.high
        norm = math.sqrt(sum(value * value for value in values))
        assert norm <= part.bound * (1 + 1e-12)
        share += (norm / part.sigma) ** 2
        assert form.privacy is not None
        assert form.privacy.device_sigma(part) >= 2 * (1 - 1e-12)
    assert share <= 1 / multiplier**2 * (1 + 1e-9)
    # the coordinator's account goes by less (server.privacy.choice)
    assert multiplier * (1 - 1e-9) <= form.accounted_multiplier <= multiplier * (1 + 1e-12)
    assert "metrics" not in vector.values
    assert "scales" not in vector.values


@pytest.mark.parametrize("weights", FORMS)
def test_the_sum_in_the_ring_is_the_sum_and_the_noise(weights: WeightForm) -> None:
    form = private_form(weights)
    vectors = [form.encode(steps_told(SPEC, seed), Metrics()) for seed in range(7)]

    found = sum_in_ring(form, vectors, 9, seed=0)

    plain = form.add_up(vectors)
    again = sum_in_ring(form, vectors, 7, seed=0)
    for part in form.parts:
        noise = found.sums[part.name] - plain.sums[part.name]
        np.testing.assert_array_equal(noise, again.sums[part.name] - plain.sums[part.name])
        expected = part.sigma * math.sqrt(7 / 5)
        assert 0 < np.abs(noise).max() < 7 * expected
        if part.size > 100:
            assert abs(noise.std() / expected - 1) < 5 / math.sqrt(2 * part.size)


@pytest.mark.parametrize("weights", FORMS)
def test_a_segment_holds_the_noise_of_a_full_cohort_too(weights: WeightForm) -> None:
    form = private_form(weights, Privacy("distributed", 4.0, 2, clip=3.0))
    lowest = Vector(form, {part.name: np.full(part.size, part.low) for part in form.parts})
    highest = Vector(form, {part.name: np.full(part.size, part.high) for part in form.parts})

    for extreme, sign in ((lowest, -1), (highest, 1)):
        for seed in range(20):
            found = sum_in_ring(form, [extreme] * 3, 3, seed=100 * seed)
            for part in form.parts:
                # wrapped around, a sum would be far from all that noise can do
                assert np.abs(found.sums[part.name] - sign * 3 * part.high).max() < 8 * part.sigma * math.sqrt(3 / 2)


def test_noise_is_drawn_anew_from_the_system_unless_a_seed_is_given() -> None:
    form = private_form("signs")
    vector = form.encode(steps_told(SPEC, 0), Metrics())
    layout = form.layout(5)

    assert vector.to_ring(layout).to_bytes() != vector.to_ring(layout).to_bytes()
    seeded = [vector.to_ring(layout, SeededRandomness(1)).to_bytes() for _ in range(2)]
    assert seeded[0] == seeded[1]


@pytest.mark.parametrize("weights", FORMS)
def test_central_noise_is_added_once_to_the_sum(weights: WeightForm) -> None:
    form = private_form(weights, replace(SOME, mechanism="central"))
    vectors = [form.encode(steps_told(SPEC, seed), Metrics()) for seed in range(6)]
    exact = sum_in_ring(form, vectors, 8, seed=0)

    found = exact.with_noise(SeededRandomness(3))

    for part in form.parts:
        np.testing.assert_array_equal(exact.sums[part.name], form.add_up(vectors).sums[part.name])
        noise = found.sums[part.name] - exact.sums[part.name]
        assert 0 < np.abs(noise).max() < 7 * part.sigma
    big = next(part for part in form.parts if part.name == "weights")
    noise = found.sums["weights"] - exact.sums["weights"]
    assert abs(noise.std() / big.sigma - 1) < 5 / math.sqrt(2 * big.size)


def test_tensors_come_back_in_the_units_of_all_forms() -> None:
    privacy = Privacy("central", 1e-3, 1, clip=1e6)
    form, plain = private_form("fixed", privacy), ValueForm(SPEC, "update", weights="fixed")
    told = steps_told(SPEC, 0)
    vectors = [form.encode(told, Metrics())] * 3

    found, expected = form.add_up(vectors).tensors(), plain.add_up([plain.encode(told, Metrics())] * 3).tensors()

    assert list(found) == list(expected)
    for tensor in SPEC.tensors:
        unit = form.units[tensor.name]
        if tensor.role == "mean_abs_dev":  # held above nothing
            assert (found[tensor.name] > 0).all()
            continue
        # beta is bounded far below what is told here; statistics are told in 1/256 of their typical size
        tolerance = {"weight": 0.0, "beta": 0.1, "mean": 3 * 255 * 4 / 256}[tensor.role]
        np.testing.assert_allclose(found[tensor.name] / unit, expected[tensor.name] / unit, atol=tolerance, rtol=0)


def test_a_sign_stands_for_four_steps_in_the_first_round_and_fewer_later() -> None:
    form = private_form("signs", Privacy("central", 1.0, 1))
    told = steps_told(SPEC, 0)
    total = form.add_up([form.encode(told, Metrics())] * 2)

    signs = np.sign(np.asarray(told["dense1.weight"]))
    np.testing.assert_array_equal(total.signs["dense1.weight"], 2 * signs)
    np.testing.assert_array_equal(total.tensors()["dense1.weight"], 2 * 1024 * signs.astype(np.int64))
    later = public_scales(SPEC, 0.25)
    np.testing.assert_array_equal(total.tensors(later)["dense1.weight"], 2 * 256 * signs.astype(np.int64))
    assert total.mean_scales == {}
    assert total.metrics.validation_examples == 0


def test_a_device_says_whether_its_weights_were_within_the_clip() -> None:
    form = private_form("fixed", Privacy("central", 1.0, 1, clip=100.0))
    quiet, loud = steps_told(SPEC, 0, size=0.5), steps_told(SPEC, 1, size=50.0)

    total = form.add_up([form.encode(told, Metrics()) for told in (quiet, quiet, quiet, loud)])

    assert total.within_clip == 0.75
    assert private_form("signs").add_up([]).within_clip is None


def test_the_clip_goes_to_where_the_wanted_part_of_the_devices_is_within_it() -> None:
    norms = np.linspace(50, 150, 101)
    clip = 1000.0
    for _ in range(300):
        clip = adapted_clip(clip, float((norms <= clip).mean()), 0.3)

    assert abs((norms <= clip).mean() - 0.3) < 0.05
    assert adapted_clip(10.0, 1.0, 0.5) == pytest.approx(10 * math.exp(-0.1))
    assert adapted_clip(0.1, 1.0, 0.1) == 0.1
    assert adapted_clip(1e6, 0.0, 0.9) == 1e6


def test_nothing_is_owed_under_privacy() -> None:
    form = SummedUpdates("signs", privacy=SOME).form(SPEC, "update", frozenset())
    trained, base = random_state(SPEC, 1), random_state(SPEC, 2)

    told, owed = tell_whole(form, trained, base, None, {})

    difference = trained["dense1.weight"].astype(np.int16) - base["dense1.weight"]
    np.testing.assert_array_equal(told["dense1.weight"], difference)
    assert owed == {}


def test_networks_and_numbers_without_a_bound_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="real-valued layers"):
        private_form("signs", spec=resnete18(input_shape=(32, 32, 3), classes=4, widths=(4, 4, 4, 4)))
    with pytest.raises(ConfigurationError, match="clip above 0"):
        private_form("fixed", replace(SOME, clip=0.0))
    for changed in ({"noise_multiplier": 0.0}, {"noisy_members": 0}, {"clip": float("nan")}, {"mechanism": "local"}):
        with pytest.raises(ConfigurationError):
            replace(SOME, **changed)


def test_what_is_no_number_is_refused() -> None:
    form = private_form("signs")
    told = dict(steps_told(SPEC, 0))
    told["norm1.beta"] = np.full(24, np.nan, np.float32)

    with pytest.raises(PayloadError, match=r"norm1\.beta must be finite"):
        form.encode(told, Metrics())


def test_a_sum_of_little_noise_each_is_accounted_as_less() -> None:
    form = private_form("signs")
    coarse = tuple(replace(part, sigma=0.4 * math.sqrt(SOME.noisy_members)) for part in form.parts)

    naive = 1 / math.sqrt(sum((part.bound / part.sigma) ** 2 for part in coarse))
    assert effective_multiplier(coarse, SOME) < 0.999 * naive
    assert effective_multiplier(coarse, replace(SOME, mechanism="central")) == pytest.approx(naive)

"""What a hostile device sends, worked out by hand from the formula."""

import numpy as np
import pytest

from bnncore.codec import CODECS, SignTensor, get_codec, get_difference_codec, get_state_codec
from bnncore.state import to_float32
from bnncore.zoo import mlp
from server.simulate.attack import ATTACKS, poison
from tests.bnncore.random_differences import numbers, signs
from tests.bnncore.random_states import random_state

SPEC = mlp(input_shape=(5,), widths=(11,), classes=3)
STATISTICS = [tensor.name for tensor in SPEC.tensors if tensor.is_statistic]
WEIGHTS = [tensor.name for tensor in SPEC.tensors if tensor.role == "weight"]


@pytest.mark.parametrize(("attack", "factor"), [("negate", 1), ("scale", 10)])
def test_a_hostile_state_lies_on_the_other_side_of_the_model(attack: str, factor: int) -> None:
    base, learnt = random_state(SPEC, 1), random_state(SPEC, 2)
    codec = get_state_codec("int8")

    data = poison(attack, SPEC, base, codec.encode(SPEC, learnt, kind="update"), "int8")

    sent = codec.decode(SPEC, data, kind="update")
    for name in WEIGHTS:
        far = base[name].astype(int) - factor * (learnt[name].astype(int) - base[name])
        assert np.array_equal(sent[name], np.clip(far, -127, 127))
    assert all(np.array_equal(sent[name], learnt[name]) for name in STATISTICS)


def test_the_model_may_come_in_another_dtype_than_the_update() -> None:
    base, learnt = random_state(SPEC, 1), random_state(SPEC, 2)
    as_real = {name: to_float32(array) for name, array in base.items()}
    codec = get_state_codec("int8")
    honest = codec.encode(SPEC, learnt, kind="update")

    assert poison("negate", SPEC, as_real, honest, "int8") == poison("negate", SPEC, base, honest, "int8")


def test_a_hostile_difference_has_the_other_signs_and_larger_scales() -> None:
    codec = get_difference_codec("sign")
    generator = np.random.default_rng(0)
    learnt: dict[str, SignTensor | np.ndarray] = {}
    for tensor in SPEC.tensors:
        if tensor.role == "weight":
            bits = np.packbits(generator.integers(0, 2, tensor.shape, np.uint8), axis=1, bitorder="little")
            learnt[tensor.name] = SignTensor(tensor.shape, np.full(tensor.shape[0], 7000, np.uint16), bits)
        else:
            learnt[tensor.name] = np.ones(tensor.shape, np.float32)
    honest = codec.encode(SPEC, learnt, kind="update")
    told = codec.decode(SPEC, honest, kind="update")

    sent = codec.decode(SPEC, poison("scale", SPEC, {}, honest, "sign"), kind="update")

    for name in WEIGHTS:
        assert np.array_equal(signs(sent[name]).dense(), np.clip(-10 * signs(told[name]).dense(), -65535, 65535))
    for name in told.keys() - WEIGHTS:
        factor = 1 if name in STATISTICS else -10
        assert np.array_equal(numbers(sent[name]), factor * numbers(told[name]))


@pytest.mark.parametrize("name", sorted(name for name, codec in CODECS.items() if not codec.is_difference))
@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_poison_is_a_valid_update_of_every_codec(name: str, attack: str) -> None:
    codec = get_codec(name)
    honest = codec.encode(SPEC, random_state(SPEC, 3), kind="update")

    hostile = poison(attack, SPEC, random_state(SPEC, 4), honest, name)

    assert codec.decode(SPEC, hostile, kind="update")
    assert hostile != honest

"""Laws of every difference codec."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnncore.codec import (
    CODECS,
    Difference,
    DifferenceCodec,
    PayloadKind,
    SignTensor,
    get_difference_codec,
    round_difference,
)
from bnncore.codec.difference import statistic_bounds
from bnncore.errors import ConfigurationError, PayloadError, ShapeError
from bnncore.spec import ModelSpec
from bnncore.zoo import binarynet, mlp
from tests.bnncore.random_differences import assert_same_difference, numbers, random_difference, random_signs
from tests.bnncore.random_states import random_state, specs
from tests.bnncore.residual_cases import bare, odd

SPEC = mlp((2, 3), (4,), 2)
DIFFERENCE_CODECS = [codec for codec in CODECS.values() if isinstance(codec, DifferenceCodec)]
codecs = st.sampled_from(DIFFERENCE_CODECS)
kinds: st.SearchStrategy[PayloadKind] = st.sampled_from(["update", "step"])
each_codec = pytest.mark.parametrize("codec", DIFFERENCE_CODECS, ids=lambda codec: codec.name)


def difference_for(codec: DifferenceCodec, spec: ModelSpec = SPEC, seed: int = 3) -> Difference:
    return random_difference(spec, seed, density=None if codec.density is None else 0.3)


def parameters_of(spec: ModelSpec, difference: Difference, kind: PayloadKind) -> Difference:
    statistics = {tensor.name for tensor in spec.tensors if tensor.is_statistic}
    return {name: found for name, found in difference.items() if kind == "update" or name not in statistics}


@given(specs, codecs, kinds, st.integers(0, 99))
def test_decoding_gives_back_what_was_encoded(
    spec: ModelSpec, codec: DifferenceCodec, kind: PayloadKind, seed: int
) -> None:
    difference = difference_for(codec, spec, seed)

    data = codec.encode(spec, difference, kind=kind)
    decoded = codec.decode(spec, memoryview(data), kind=kind)

    assert_same_difference(decoded, round_difference(spec, parameters_of(spec, difference, kind)))
    assert codec.encode(spec, decoded, kind=kind) == data
    assert_same_difference(difference, difference_for(codec, spec, seed))


@each_codec
@pytest.mark.parametrize("network", [odd, bare])
def test_residual_networks_travel_too(codec: DifferenceCodec, network: Callable[[], ModelSpec]) -> None:
    spec = network()
    difference = difference_for(codec, spec)

    decoded = codec.decode(spec, codec.encode(spec, difference, kind="update"), kind="update")

    assert_same_difference(decoded, round_difference(spec, difference))
    for tensor in spec.tensors:
        if tensor.role in ("real_weight", "bias"):
            found, told = numbers(decoded[tensor.name]), numbers(difference[tensor.name])
            np.testing.assert_allclose(found, told, rtol=2**-11, atol=2**-25)


@given(specs, st.integers(0, 99))
def test_real_numbers_are_told_to_eleven_bits(spec: ModelSpec, seed: int) -> None:
    difference = random_difference(spec, seed)

    rounded = round_difference(spec, difference)

    for tensor in spec.tensors:
        if tensor.role != "weight":
            # The last bit of the smallest float16, in the units that statistics are stored in.
            least = 2.0**-25 * statistic_bounds(spec).get(tensor.name, 1)
            found, told = numbers(rounded[tensor.name]), numbers(difference[tensor.name])
            np.testing.assert_allclose(found, told, rtol=2**-11, atol=least)


def test_a_statistic_on_its_bound_is_told_exactly() -> None:
    bounds = statistic_bounds(SPEC)
    values = {name: np.full(dict(SPEC.tensor_shapes())[name], bound, np.float32) for name, bound in bounds.items()}

    rounded = round_difference(SPEC, values)  # type: ignore[arg-type]

    assert bounds == {  # 6 inputs times 255 is less than 2048; 4 inputs of +-1
        "norm1.mean": 2048, "norm1.mean_abs_dev": 2048, "norm2.mean": 4, "norm2.mean_abs_dev": 4,
    }  # fmt: skip
    for name, found in rounded.items():
        np.testing.assert_array_equal(found, values[name])


@each_codec
def test_every_truncation_is_refused(codec: DifferenceCodec) -> None:
    data = codec.encode(SPEC, difference_for(codec), kind="update")

    for length in range(len(data)):
        with pytest.raises(PayloadError):
            codec.decode(SPEC, data[:length], kind="update")


@each_codec
def test_every_changed_byte_is_refused(codec: DifferenceCodec) -> None:
    data = codec.encode(SPEC, difference_for(codec), kind="update")

    for position in range(len(data)):
        for change in (1, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[position] ^= change
            with pytest.raises(PayloadError):
                codec.decode(SPEC, bytes(damaged), kind="update")


@settings(max_examples=300)
@given(codecs, kinds, st.binary(max_size=120), st.integers(0, 200), st.data())
def test_damage_under_a_right_checksum_is_refused_or_decodes_to_a_valid_difference(
    codec: DifferenceCodec, kind: PayloadKind, noise: bytes, at: int, data: st.DataObject
) -> None:
    body = codec.encode(SPEC, difference_for(codec), kind=kind)[:-4]
    at = min(at, len(body))
    forged = body[:at] + noise + body[data.draw(st.integers(at, len(body))) :]
    forged += zlib.crc32(forged).to_bytes(4, "little")

    try:
        decoded = codec.decode(SPEC, forged, kind=kind)
    except PayloadError:
        return
    codec.encode(SPEC, decoded, kind=kind)  # which checks it


@given(codecs, st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(codec: DifferenceCodec, noise: bytes) -> None:
    for data in (noise, b"bfc1" + noise):
        with pytest.raises(PayloadError):
            codec.decode(SPEC, data, kind="step")


@each_codec
def test_a_payload_for_another_purpose_is_refused(codec: DifferenceCodec) -> None:
    data = codec.encode(SPEC, difference_for(codec), kind="step")
    state = CODECS["int8"].encode(SPEC, random_state(SPEC, 1), kind="update")

    with pytest.raises(PayloadError, match=r"must be made for .* kind 1 \(update\)"):
        codec.decode(SPEC, data, kind="update")
    with pytest.raises(PayloadError, match="must be made for"):  # same shapes, another network
        codec.decode(mlp((3, 2), (4,), 2), data, kind="step")
    for other in DIFFERENCE_CODECS:
        if other is not codec:
            with pytest.raises(PayloadError, match="must be made for"):
                other.decode(SPEC, data, kind="step")
    with pytest.raises(PayloadError, match="starts with b'bfc1'"):
        codec.decode(SPEC, state, kind="update")


@each_codec
@pytest.mark.parametrize("kind", ["model", "statistics"])
def test_a_kind_that_is_no_difference_is_refused(codec: DifferenceCodec, kind: PayloadKind) -> None:
    with pytest.raises(ConfigurationError, match=r"\['update', 'step'\], not"):
        codec.encode(SPEC, difference_for(codec), kind=kind)
    with pytest.raises(ConfigurationError, match=r"\['update', 'step'\], not"):
        codec.decode(SPEC, b"", kind=kind)


@each_codec
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("norm1.beta", None, "missing"),
        ("extra", np.zeros(2, np.float32), "not wanted"),
        ("dense1.weight", np.zeros((4, 6), np.float32), "must be signs"),
        ("dense1.weight", random_signs((6, 4), 1), "must be signs of shape"),
        ("norm1.beta", random_signs((4,), 1), "must be numbers"),
        ("norm1.beta", np.zeros(4, np.float64), "float32"),
        ("norm1.beta", np.full(4, np.nan, np.float32), "finite"),
        ("norm1.beta", np.full(4, 65520, np.float32), "finite"),
        ("norm1.mean_abs_dev", np.full(4, -1, np.float32), "negative"),
    ],
)
def test_a_bad_tensor_is_not_encoded(codec: DifferenceCodec, name: str, value: Any, message: str) -> None:
    difference = {**difference_for(codec), name: value}
    if value is None:
        del difference[name]

    with pytest.raises((PayloadError, ShapeError), match=message):
        codec.encode(SPEC, difference, kind="update")


def test_signs_that_leave_elements_out_are_no_payload_of_sign() -> None:
    difference = {**difference_for(get_difference_codec("sign")), "dense1.weight": random_signs((4, 6), 1, density=0.5)}

    with pytest.raises(PayloadError, match="take 'flips'"):
        get_difference_codec("sign").encode(SPEC, difference, kind="step")
    with pytest.raises(PayloadError, match="Take 'sign'"):
        get_difference_codec("flips").encode(SPEC, random_difference(SPEC, 1), kind="step")


def test_the_layout_of_a_sign_step_is_what_the_page_says() -> None:
    spec = mlp((3,), (), 2)
    signs = SignTensor((2, 3), np.array([256, 515], np.uint16), np.array([[0b101], [0b010]], np.uint8))
    difference: Difference = {"dense1.weight": signs, "norm1.beta": np.array([1.0, -2.0], np.float32)}

    data = get_difference_codec("sign").encode(spec, difference, kind="step")

    body = b"bfc1" + bytes([1, 2, 1, 0]) + bytes.fromhex(spec.digest)
    body += bytes([0, 1, 3, 2]) + bytes([0b101, 0b010]) + bytes([0x00, 0x3C, 0x00, 0xC0])  # 1.0 and -2.0 in float16
    assert data == body + zlib.crc32(body).to_bytes(4, "little")


def test_signs_are_read_where_they_lie() -> None:
    codec = get_difference_codec("sign")
    data = codec.encode(SPEC, difference_for(codec), kind="step")

    signs = codec.decode(SPEC, data, kind="step")["dense1.weight"]

    assert isinstance(signs, SignTensor)
    assert np.shares_memory(signs.bits, np.frombuffer(data, np.uint8))
    assert not signs.bits.flags.writeable


def test_sign_costs_little_more_than_one_bit_a_weight() -> None:
    codec = get_difference_codec("sign")
    for spec in (mlp(), binarynet()):
        difference = difference_for(codec, spec)

        up = len(codec.encode(spec, difference, kind="update"))
        down = len(codec.encode(spec, difference, kind="step"))

        assert 8 * up <= 1.20 * spec.num_binary_weights
        assert 8 * down <= 1.10 * spec.num_binary_weights


def flips_step(mask: bytes, signs: bytes, *, length: int | None = None) -> bytes:
    """A step of a network of two rows of three weights."""
    spec = mlp((3,), (), 2)
    body = b"bfc1" + bytes([2, 2, 1, 0]) + bytes.fromhex(spec.digest) + bytes([0, 1, 3, 2])
    body += (len(mask) if length is None else length).to_bytes(4, "little") + mask + signs + bytes(4)
    return body + zlib.crc32(body).to_bytes(4, "little")


def deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-15)
    return deflater.compress(data) + deflater.flush()


def test_the_layout_of_flips_is_what_the_page_says() -> None:
    data = flips_step(deflate(bytes([0b101, 0b010])), bytes([0b110]))

    signs = get_difference_codec("flips").decode(mlp((3,), (), 2), data, kind="step")["dense1.weight"]

    assert isinstance(signs, SignTensor)
    np.testing.assert_array_equal(signs.dense(), [[256, 0, -256], [0, -515, 0]])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (flips_step(deflate(bytes([0b101, 0b010])), bytes([0b1110])), "beyond its 3 elements"),
        (flips_step(deflate(bytes([0b1101, 0b010])), bytes([0])), "beyond the 3 elements of a row"),
        (flips_step(deflate(bytes([0b101])), bytes([0])), "mask of 2 bytes"),
        (flips_step(deflate(bytes(3)), bytes([])), "mask of 2 bytes"),
        (flips_step(deflate(bytes(1 << 24)), bytes([])), "mask of 2 bytes"),
        (flips_step(deflate(bytes(2)) + b"x", b""), "nothing behind it"),
        (flips_step(deflate(bytes(2))[:-1], b""), "mask of 2 bytes"),
        (flips_step(b"\xff\xff", b""), "cannot be inflated"),
        (flips_step(deflate(bytes(2)), b"", length=1 << 31), "cut"),
        (flips_step(deflate(bytes(2)), b"x"), "the tensors take"),
        (flips_step(deflate(bytes([7, 7])), b""), "needs"),
    ],
)
def test_flips_that_contradict_themselves_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(PayloadError, match=message):
        get_difference_codec("flips").decode(mlp((3,), (), 2), data, kind="step")


def test_a_mask_longer_than_a_block_is_gathered_and_scattered() -> None:
    spec = mlp((1, 70_001), (11,), 2)
    difference = random_difference(spec, 1, density=0.07)

    data = get_difference_codec("flips").encode(spec, difference, kind="step")

    decoded = get_difference_codec("flips").decode(spec, data, kind="step")
    assert_same_difference(decoded, round_difference(spec, parameters_of(spec, difference, "step")))
    assert len(data) < 0.47 / 8 * spec.num_binary_weights  # 0.366 bits of the mask's entropy, 0.07 of signs


@pytest.mark.parametrize("part", ["bits", "mask"])
def test_a_set_bit_beyond_a_row_is_refused(part: str) -> None:
    signs = random_signs((4, 6), 1, density=0.5)
    full = np.full((4, 1), 0xFF, np.uint8)

    with pytest.raises(PayloadError, match="beyond the 6 elements"):
        replace(signs, bits=full if part == "bits" else signs.bits, mask=full)

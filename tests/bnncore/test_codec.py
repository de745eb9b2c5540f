"""Laws of every state codec, and of the container below them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bnncore.codec import CODECS, PayloadKind, get_codec, get_difference_codec, get_state_codec, payload_digest
from bnncore.codec.base import tensors_of_kind
from bnncore.codec.container import pack, unpack
from bnncore.errors import ConfigurationError, PayloadError, ShapeError
from bnncore.spec import ModelSpec
from bnncore.state import State, to_float32, to_int8, validate_tensors
from bnncore.zoo import mlp
from tests.bnncore.random_states import assert_same_state, random_state, specs

SPEC = mlp((2, 3), (4,), 2)
STATE_CODECS = sorted(name for name, codec in CODECS.items() if not codec.is_difference)
codec_names = st.sampled_from(STATE_CODECS)
kinds: st.SearchStrategy[PayloadKind] = st.sampled_from(["model", "update", "statistics"])
dtypes = st.sampled_from([np.int8, np.float32])


def payload(codec: str = "int8", kind: PayloadKind = "update", spec: ModelSpec = SPEC, seed: int = 3) -> bytes:
    return get_state_codec(codec).encode(spec, random_state(spec, seed), kind=kind)


def through_float16(array: NDArray[Any]) -> NDArray[np.float32]:
    """Round to float16; a negative number stays below 0."""
    real = to_float32(array)
    half = real.astype(np.float16)
    return np.where((real < 0) & (half == 0), np.float32(-(2.0**-24)), half.astype(np.float32))


def as_decoded(codec: str, kind: PayloadKind, state: State) -> State:
    """What a codec must give back, computed from the definition."""
    convert: Any = {"int8": to_int8, "float32": to_float32, "float16": through_float16}[codec]
    statistics = {name for name in state if name.endswith((".mean", ".mean_abs_dev"))}
    wanted = {"model": set(state) - statistics, "update": set(state), "statistics": statistics}[kind]
    converted = {".weight": convert, ".beta": through_float16 if codec == "float16" else to_float32}
    return {
        name: converted.get(name[name.rindex(".") :], to_float32)(array)
        for name, array in state.items()
        if name in wanted
    }


@given(specs, codec_names, kinds, dtypes, st.integers(0, 99))
def test_decoding_gives_back_what_was_encoded(
    spec: ModelSpec, codec: str, kind: PayloadKind, dtype: Any, seed: int
) -> None:
    state = random_state(spec, seed, dtype=dtype)

    data = get_state_codec(codec).encode(spec, state, kind=kind)
    decoded = get_state_codec(codec).decode(spec, memoryview(data), kind=kind)

    assert_same_state(decoded, as_decoded(codec, kind, state))
    assert_same_state(state, random_state(spec, seed, dtype=dtype))
    assert get_state_codec(codec).encode(spec, decoded, kind=kind) == data


@pytest.mark.parametrize("codec", STATE_CODECS)
def test_every_truncation_is_refused(codec: str) -> None:
    data = payload(codec)

    for length in range(len(data)):
        with pytest.raises(PayloadError):
            get_state_codec(codec).decode(SPEC, data[:length], kind="update")


@pytest.mark.parametrize("codec", STATE_CODECS)
def test_every_changed_byte_is_refused_or_decodes_to_a_valid_state(codec: str) -> None:
    data = payload(codec)
    generator = np.random.default_rng(5)
    refused = 0

    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= int(generator.integers(1, 256))
        try:
            state = get_state_codec(codec).decode(SPEC, bytes(damaged), kind="update")
        except PayloadError:
            refused += 1
        else:
            validate_tensors(SPEC, state, tensors_of_kind(SPEC, "update"))

    assert refused > 0


@settings(max_examples=300)
@given(st.binary(max_size=300), st.booleans())
def test_arbitrary_bytes_are_refused(noise: bytes, with_length: bool) -> None:
    data = len(noise).to_bytes(8, "little") + noise if with_length else noise

    with pytest.raises(PayloadError):
        get_state_codec("int8").decode(SPEC, data, kind="model")


@settings(max_examples=300)
@given(
    st.dictionaries(
        st.sampled_from(["__metadata__", "a", "b"]),
        st.none()
        | st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "F16", "I8", "F64", 3, ["I8"]]),
                "shape": st.lists(st.integers(-1, 5) | st.just(10**30) | st.booleans()) | st.none(),
                "data_offsets": st.lists(st.integers(-4, 24) | st.floats(), max_size=3),
            }
        )
        | st.just({"bitfleet": "x"}),
    ),
    st.binary(max_size=24),
)
def test_any_header_is_read_or_refused(header: dict[str, Any], body: bytes) -> None:
    text = json.dumps(header).encode()

    try:
        tensors, _ = unpack(len(text).to_bytes(8, "little") + text + body)
    except PayloadError:
        return
    assert sum(array.nbytes for array in tensors.values()) == len(body)


def test_a_payload_for_another_purpose_is_refused() -> None:
    data = payload()

    for spec, codec, kind in [
        (mlp((3, 2), (4,), 2), "int8", "update"),  # same shapes, another network
        (SPEC, "float32", "update"),
        (SPEC, "int8", "model"),
    ]:
        with pytest.raises(PayloadError, match="must be made for"):
            get_state_codec(codec).decode(spec, data, kind=kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("norm1.beta", None, "missing"),
        ("extra", np.zeros(2, np.float32), "not wanted"),
        ("dense1.weight", np.zeros((6, 4), np.int8), "shape"),
        ("norm1.beta", np.full(4, np.nan, np.float32), "finite"),
        ("norm1.mean_abs_dev", np.full(4, -1, np.float32), "negative"),
        ("dense1.weight", np.full((4, 6), -128, np.int8), "127"),
    ],
)
def test_a_bad_tensor_is_refused_at_both_ends(name: str, value: Any, message: str) -> None:
    good = payload()
    state = {**random_state(SPEC, 3), name: value}
    if value is None:
        del state[name]
    forged = pack(state, unpack(good)[1])

    with pytest.raises(PayloadError, match=message):
        get_state_codec("int8").decode(SPEC, forged, kind="update")
    with pytest.raises((PayloadError, ShapeError), match=message):
        get_state_codec("int8").encode(SPEC, state, kind="update")


def test_weights_of_another_dtype_than_the_codecs_are_refused() -> None:
    forged = pack(random_state(SPEC, 3, dtype=np.float32), unpack(payload("int8"))[1])

    with pytest.raises(PayloadError, match="must be int8"):
        get_state_codec("int8").decode(SPEC, forged, kind="update")


def test_decoding_copies_nothing() -> None:
    data = payload()

    state = get_state_codec("int8").decode(SPEC, data, kind="update")

    whole = np.frombuffer(data, np.uint8)
    assert all(np.shares_memory(array, whole) for array in state.values())
    assert all(array.flags.aligned and not array.flags.writeable for array in state.values())


def test_float16_keeps_every_sign_and_gives_int8_weights_back() -> None:
    codec = get_state_codec("float16")
    state = random_state(SPEC, 3)
    state["dense1.weight"] = np.arange(-12, 12, dtype=np.int8).reshape(4, 6)
    tiny = np.array([[-1e-30, 1e-30, -0.0, 0.0, -1.0, 1.0]] * 4, np.float32)

    whole = codec.decode(SPEC, codec.encode(SPEC, state, kind="model"), kind="model")
    real = {**random_state(SPEC, 3, dtype=np.float32), "dense1.weight": tiny}
    found = codec.decode(SPEC, codec.encode(SPEC, real, kind="model"), kind="model")["dense1.weight"]

    np.testing.assert_array_equal(to_int8(whole["dense1.weight"]), state["dense1.weight"])
    np.testing.assert_array_equal(to_int8(whole["dense2.weight"]), state["dense2.weight"])
    np.testing.assert_array_equal(found < 0, tiny < 0)
    np.testing.assert_array_equal(found[:, 4:], tiny[:, 4:])


def test_float16_refuses_what_it_cannot_hold_at_both_ends() -> None:
    codec = get_state_codec("float16")
    good = codec.encode(SPEC, random_state(SPEC, 3), kind="model")
    tensors, metadata = unpack(good)

    with pytest.raises(PayloadError, match="65504"):
        codec.encode(SPEC, {**random_state(SPEC, 3), "norm1.beta": np.full(4, 65520, np.float32)}, kind="model")
    with pytest.raises(PayloadError, match="finite"):
        codec.decode(SPEC, pack({**tensors, "norm1.beta": np.full(4, np.inf, np.float16)}, metadata), kind="model")
    with pytest.raises(PayloadError, match="must be float16"):
        codec.decode(SPEC, pack({**tensors, "norm1.beta": np.ones(4, np.float32)}, metadata), kind="model")
    with pytest.raises(PayloadError, match=r"\[-1, 1\]"):
        codec.decode(SPEC, pack({**tensors, "dense1.weight": np.full((4, 6), 1.5, np.float16)}, metadata), kind="model")


def test_int8_costs_one_byte_a_weight() -> None:
    spec = mlp((28, 28), (256, 256), 10)
    floats = 4 * 2 * (256 + 256 + 10)

    size = len(get_state_codec("int8").encode(spec, random_state(spec, 0), kind="update"))

    assert size - spec.num_binary_weights - floats - 4 * (256 + 256 + 10) < 2048


def test_payloads_open_in_the_safetensors_package_and_the_reverse() -> None:
    data = payload()
    state = random_state(SPEC, 3)

    theirs = safetensors.numpy.load(data)
    ours, metadata = unpack(safetensors.numpy.save(state, metadata={"bitfleet": "hello"}))

    assert metadata == "hello"
    for name, array in state.items():
        assert theirs[name].tobytes() == array.tobytes()
        assert ours[name].tobytes() == array.tobytes()


def test_payload_digest_is_the_known_sha256() -> None:
    assert payload_digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_an_unknown_codec_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"\['flips', 'float16', 'float32', 'int8', 'sign'\], got 'zip'"):
        get_codec("zip")


def test_a_codec_of_the_other_family_is_refused_with_those_of_the_wanted_one() -> None:
    assert get_codec("sign") is get_difference_codec("sign")

    with pytest.raises(
        ConfigurationError, match=r"\['float16', 'float32', 'int8'\] here, got 'sign', which writes differences"
    ):
        get_state_codec("sign")
    with pytest.raises(ConfigurationError, match=r"\['flips', 'sign'\] here, got 'int8', which writes states"):
        get_difference_codec("int8")


@pytest.mark.parametrize("codec", STATE_CODECS)
def test_a_kind_that_a_state_has_not_is_refused(codec: str) -> None:
    with pytest.raises(ConfigurationError, match=r"\['model', 'update', 'statistics'\], not 'step'"):
        get_state_codec(codec).encode(SPEC, random_state(SPEC, 3), kind="step")
    with pytest.raises(ConfigurationError, match="not 'step'"):
        get_state_codec(codec).decode(SPEC, b"", kind="step")

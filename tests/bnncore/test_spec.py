"""A spec is the same bytes everywhere, and cannot exist invalid."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_states import specs

from bnncore.errors import SpecError
from bnncore.spec import DenseBlock, ModelSpec
from bnncore.zoo import ZOO, build, mlp

SMALL = mlp((2, 3), (4,), 2)


def test_json_is_canonical_and_names_every_layer() -> None:
    text = SMALL.to_json()

    assert text == (
        '{"format":"bitfleet.model","input_shape":[2,3],"layers":['
        '{"in_features":6,"kind":"binary_dense","name":"dense1","out_features":4},'
        '{"features":4,"kind":"l1_batch_norm","name":"norm1"},'
        '{"kind":"sign","name":"sign1"},'
        '{"in_features":4,"kind":"binary_dense","name":"dense2","out_features":2},'
        '{"features":2,"kind":"l1_batch_norm","name":"norm2"},'
        '{"classes":2,"kind":"softmax_cross_entropy","name":"loss"}],"name":"mlp","version":1}'
    )
    assert SMALL.digest == hashlib.sha256(text.encode()).hexdigest()


@given(specs)
def test_reading_gives_back_what_was_written(spec: ModelSpec) -> None:
    assert ModelSpec.from_json(spec.to_json()) == spec
    assert ModelSpec.from_json(json.dumps(spec.to_dict(), indent=3).encode()).digest == spec.digest


def test_blocks_and_tensors_follow_the_layers() -> None:
    assert SMALL.blocks == (
        DenseBlock("dense1", "norm1", 6, 4, is_first=True, is_last=False),
        DenseBlock("dense2", "norm2", 4, 2, is_first=False, is_last=True),
    )
    assert list(SMALL.tensor_shapes().items()) == [
        ("dense1.weight", (4, 6)),
        ("norm1.beta", (4,)),
        ("norm1.mean", (4,)),
        ("norm1.mean_abs_dev", (4,)),
        ("dense2.weight", (2, 4)),
        ("norm2.beta", (2,)),
        ("norm2.mean", (2,)),
        ("norm2.mean_abs_dev", (2,)),
    ]
    assert (SMALL.input_features, SMALL.classes, SMALL.num_binary_weights) == (6, 2, 32)


def test_the_default_mlp_has_the_papers_number_of_weights() -> None:
    assert mlp().num_binary_weights == 784 * 256 + 3 * 256 * 256 + 256 * 10


def edit(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Make an edit that sets (or with ``...`` deletes) one value of a spec in JSON form."""

    def apply(spec: dict[str, Any]) -> None:
        *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
        target: Any = spec
        for key in parents:
            target = target[key]
        if value is ...:
            del target[last]
        else:
            target[last] = value

    return apply


BAD_EDITS = [
    ("format", "onnx", "format"),
    ("version", 2, "upgrade"),
    ("version", True, "version"),
    ("name", "a b", "name of the model"),
    ("name", 7, "name of the model"),
    ("author", "me", "unknown ['author']"),
    ("layers", ..., "missing ['layers']"),
    ("layers", {}, "layers must be a list"),
    ("layers", [], "last layer"),
    ("input_shape", [], "input_shape"),
    ("input_shape", [0, 6], "input_shape"),
    ("input_shape", [2.0, 3], "input_shape"),
    ("input_shape", [True, 6], "input_shape"),
    ("input_shape", [1 << 20, 1 << 20], "product"),
    ("input_shape", [2, 4], "'dense1' takes 6 features but input_shape [2, 4] gives 8"),
    ("layers.0.out_features", 5, "'norm1' takes 4 features but layer 'dense1' gives 5"),
    ("layers.1.features", 5, "'norm1' takes 5 features but layer 'dense1' gives 4"),
    ("layers.3.in_features", 5, "'dense2' takes 5 features but layer 'dense1' gives 4"),
    ("layers.5.classes", 3, "'loss' tells 3 classes apart but layer 'dense2' gives 2"),
    ("layers.0.kind", "conv9d", "layers[0] must have a kind"),
    ("layers.0.kind", ["sign"], "layers[0] must have a kind"),
    ("layers.0.bias", True, "unknown ['bias']"),
    ("layers.0.in_features", ..., "missing ['in_features']"),
    ("layers.0.in_features", -1, "in_features of layer 'dense1'"),
    ("layers.0.in_features", 1 << 30, "in_features of layer 'dense1'"),
    ("layers.0", 3, "layers[0]"),
    ("layers.1.name", "dense1", "'dense1' is used twice"),
    ("layers.1.name", "norm.1", "name of layers[1]"),
    ("layers.2", ..., "must be sign, got binary_dense"),
    ("layers.1", ..., "must be l1_batch_norm, got sign"),
    ("layers.5", {"kind": "sign", "name": "end"}, "must be softmax_cross_entropy"),
    ("layers.5", ..., "last layer must be softmax_cross_entropy"),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD_EDITS)
def test_an_invalid_spec_is_refused_by_name(path: str, value: Any, message: str) -> None:
    spec = SMALL.to_dict()
    edit(path, value)(spec)

    with pytest.raises(SpecError) as caught:
        ModelSpec.from_json(json.dumps(spec))

    assert message in str(caught.value)


def test_a_loss_in_the_middle_is_refused() -> None:
    spec = SMALL.to_dict()
    spec["layers"][2] = {"kind": "softmax_cross_entropy", "name": "early", "classes": 4}

    with pytest.raises(SpecError, match=r"'early'.*must be sign"):
        ModelSpec.from_dict(spec)


@pytest.mark.parametrize("text", ["", "{", b"\xff\xfe\x00", '{"name":1,"name":2}', "[" * 100_000, "null", "[]", "NaN"])
def test_text_that_is_no_spec_is_refused(text: str | bytes) -> None:
    with pytest.raises(SpecError):
        ModelSpec.from_json(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda v: (
            st.lists(v)
            | st.dictionaries(st.sampled_from(["format", "version", "name", "input_shape", "layers", "kind"]), v)
        ),
    )
)
def test_no_json_value_raises_anything_else(value: object) -> None:
    with pytest.raises(SpecError):
        ModelSpec.from_json(json.dumps(value))


def test_build_makes_a_network_of_the_zoo_from_json_values() -> None:
    assert build("mlp", input_shape=[8, 8], widths=[32], classes=3) == mlp((8, 8), (32,), 3)
    assert all(build(name).classes > 1 for name in ZOO)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("vgg", {}, "model must be one of ['mlp'], got 'vgg'"),
        ("mlp", {"width": 3}, "takes the parameters ['input_shape', 'widths', 'classes'], got ['width']"),
        ("mlp", {"widths": 3}, "widths of model 'mlp' must be a list"),
        ("mlp", {"widths": ["3"]}, "widths of model 'mlp' must be a list"),
        ("mlp", {"widths": [0]}, "out_features of layer 'dense1'"),
        ("mlp", {"input_shape": [None]}, "input_shape of model 'mlp'"),
        ("mlp", {"classes": "ten"}, "out_features of layer 'dense5'"),
    ],
)
def test_build_refuses_what_it_does_not_know(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        build(name, **params)

    assert message in str(caught.value)

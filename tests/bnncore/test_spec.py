"""A spec is the same bytes everywhere, and cannot exist invalid."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnncore.blocks import Block
from bnncore.errors import SpecError
from bnncore.spec import ModelSpec
from bnncore.zoo import ZOO, binarynet, build, cnv, mlp, sensor1d
from tests.bnncore.random_states import specs
from tests.bnncore.spec_edits import edit

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
        Block("dense1", "norm1", 1, 1, 6, 4, 1, 1, 1, 0, 0, 1, 1, "none", 1, 1, False, True, False),
        Block("dense2", "norm2", 1, 1, 4, 2, 1, 1, 1, 0, 0, 1, 1, "none", 1, 1, False, False, True),
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


BAD_EDITS = [
    ("format", "onnx", "format"),
    ("version", 3, "upgrade"),
    ("version", 2, "version 2 of the model spec is of residual networks"),
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
    ("input_shape", [2, 4], "'dense1' takes 6 features but the input gives 8"),
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
    ("layers.2", ..., "must be sign or softmax_cross_entropy, got binary_dense"),
    ("layers.1", ..., "must be l1_batch_norm, got sign"),
    ("layers.5", {"kind": "sign", "name": "end"}, "last layer must be softmax_cross_entropy"),
    ("layers.5", ..., "last layer must be softmax_cross_entropy"),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD_EDITS)
def test_an_invalid_spec_is_refused_by_name(path: str, value: Any, message: str) -> None:
    spec = SMALL.to_dict()
    edit(spec, path, value)

    with pytest.raises(SpecError) as caught:
        ModelSpec.from_json(json.dumps(spec))

    assert message in str(caught.value)


def test_a_loss_in_the_middle_is_refused() -> None:
    spec = SMALL.to_dict()
    spec["layers"][2] = {"kind": "softmax_cross_entropy", "name": "early", "classes": 4}

    with pytest.raises(SpecError, match="no layer may follow the loss, got 'dense2'"):
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
        ("vgg", {}, "model must be one of binarynet, bireal18, cnv, mlp, resnete18, sensor1d, got 'vgg'"),
        ("mlp", {"width": 3}, "takes the parameters ['input_shape', 'widths', 'classes'], got ['width']"),
        ("mlp", {"widths": 3}, "widths of model 'mlp' must be a list"),
        ("mlp", {"widths": ["3"]}, "widths of model 'mlp' must be a list"),
        ("mlp", {"widths": [0]}, "out_features of layer 'dense1'"),
        ("cnv", {"convs_per_stage": 0}, "convs_per_stage of model 'cnv' must be a positive integer"),
        ("cnv", {"input_shape": (784,)}, "takes images of [height, width]"),
        ("cnv", {"input_shape": (8, 8)}, "images of 8 x 8: layer 'conv3' needs a map of 3 x 3, but 2 x 2 is left"),
        ("binarynet", {"input_shape": (3, 3)}, "layer 'pool2' needs a map of 2 x 2, but 1 x 1 is left. Take fewer"),
        ("sensor1d", {"input_shape": (7,)}, "windows of 7 readings: layer 'pool3' needs a map of 1 x 2, but 1 x 1"),
        ("sensor1d", {"kernel": 4}, "must have odd sides, that of layer 'conv1' has 1 x 4"),
        ("sensor1d", {"input_shape": (2, 3, 4)}, "takes windows of [readings, channels]"),
        ("mlp", {"input_shape": [None]}, "input_shape of model 'mlp'"),
        ("mlp", {"classes": "ten"}, "out_features of layer 'dense5'"),
    ],
)
def test_build_refuses_what_it_does_not_know(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        build(name, **params)

    assert message in str(caught.value)


def test_the_networks_of_the_paper_have_its_maps() -> None:
    assert [b.out_height for b in cnv().blocks] == [30, 14, 12, 5, 3, 1, 1, 1, 1]
    assert [b.out_channels for b in cnv().blocks] == [64, 64, 128, 128, 256, 256, 512, 512, 10]
    assert [b.pool for b in cnv().blocks[:6]] == ["none", "after_sign", "none", "after_sign", "none", "none"]
    assert [b.out_height for b in binarynet().blocks] == [32, 16, 16, 8, 8, 4, 1, 1, 1]
    assert [b.pool for b in binarynet().blocks[:6]] == ["none", "before_norm"] * 3
    assert binarynet().blocks[6].fan_in == 8192
    assert (cnv().num_binary_weights, binarynet().num_binary_weights) == (1_542_848, 14_022_016)
    assert cnv().tensor_shapes()["conv2.weight"] == (64, 3, 3, 64)
    assert binarynet().tensor_shapes()["dense1.weight"] == (1024, 8192)


def test_a_sensor_network_convolves_along_time() -> None:
    blocks = sensor1d().blocks

    assert [(b.kernel_height, b.kernel_width, b.pad_height, b.pad_width) for b in blocks[:3]] == [(1, 9, 0, 4)] * 3
    assert [(b.out_height, b.out_width) for b in blocks[:3]] == [(1, 64), (1, 32), (1, 16)]
    assert (blocks[0].in_height, blocks[0].in_width, blocks[0].in_channels) == (1, 128, 6)


# Layers 0 to 6: conv1 pool1 norm1 sign1 conv2 norm2 sign2; then dense1 norm3 loss.
CONV = binarynet((9, 8, 2), (4,), 2, (), 3)
BAD_MAPS = [
    ("layers.0.in_height", 8, "'conv1' takes 128 numbers but the input gives 144"),
    ("layers.0.stride", 0, "stride of layer 'conv1' must be an integer in"),
    ("layers.0.padding", "reflect", "padding of layer 'conv1' must be one of ['same', 'valid'], got 'reflect'"),
    ("layers.0.kernel_width", 2, "'same' must have odd sides, that of layer 'conv1' has 3 x 2"),
    ("layers.0.out_channels", 1 << 17, "the numbers that layer 'conv1' gives must be an integer in"),
    ("layers.3.in_width", 9, "'conv2' takes a map of 9 x 9 x 4 but layer 'conv1' gives 9 x 8 x 4"),
    ("layers.4.channels", 5, "'pool1' takes a map of 9 x 8 x 5 but layer 'conv2' gives 9 x 8 x 4"),
    ("layers.4.pool_height", 10, "window of layer 'pool1' has 10 x 2 positions, its map only 9 x 8"),
    ("layers.5.features", 64, "'norm2' takes 64 features but layer 'pool1' gives 4"),
    ("layers.7.in_features", 60, "'dense1' takes 60 features but layer 'pool1' gives a map of 4 x 4 x 4, 64 numbers"),
    ("layers.2", {"kind": "max_pool2d", "name": "p", "in_height": 9, "in_width": 8, "channels": 4, "pool_height": 2,
                  "pool_width": 2}, "must be sign or softmax_cross_entropy, got max_pool2d"),
    ("layers.7", {"kind": "max_pool2d", "name": "p", "in_height": 4, "in_width": 4, "channels": 4, "pool_height": 2,
                  "pool_width": 2}, "must be binary_conv2d or binary_dense, got max_pool2d"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "message"), BAD_MAPS)
def test_maps_that_do_not_chain_are_refused_by_name(path: str, value: Any, message: str) -> None:
    spec = CONV.to_dict()
    edit(spec, path, value)

    with pytest.raises(SpecError) as caught:
        ModelSpec.from_json(json.dumps(spec))

    assert message in str(caught.value)


def test_a_kernel_larger_than_its_map_is_refused() -> None:
    spec = CONV.to_dict()
    spec["layers"][0] |= {"padding": "valid", "kernel_height": 10}

    with pytest.raises(SpecError, match="kernel of layer 'conv1' has 10 x 3 positions, its map only 9 x 8"):
        ModelSpec.from_dict(spec)


@pytest.mark.parametrize(("position", "wanted"), [(1, "l1_batch_norm"), (3, "binary_conv2d or binary_dense")])
def test_a_pool_after_a_dense_layer_is_refused(position: int, wanted: str) -> None:
    spec = SMALL.to_dict()
    pool = {"in_height": 1, "in_width": 1, "channels": 4, "pool_height": 1, "pool_width": 1}
    spec["layers"].insert(position, {"kind": "max_pool2d", "name": "pool", **pool})

    with pytest.raises(SpecError, match=f"layer 'pool' .* must be {wanted}, got max_pool2d: .* if it is a convolution"):
        ModelSpec.from_dict(spec)


def test_a_dense_layer_gives_no_map_to_convolve() -> None:
    spec = cnv((4, 4), (4,), 1, (24,), 3).to_dict()
    conv = {"kind": "binary_conv2d", "name": "late", "in_height": 2, "in_width": 3, "in_channels": 4, "out_channels": 3}
    spec["layers"][6:] = [
        {**conv, "kernel_height": 2, "kernel_width": 3, "stride": 1, "padding": "valid"},
        {"kind": "l1_batch_norm", "name": "norm9", "features": 3},
        {"kind": "softmax_cross_entropy", "name": "loss", "classes": 3},
    ]
    with pytest.raises(SpecError, match="'late' takes a map of 2 x 3 x 4 but layer 'dense1' gives plain numbers"):
        ModelSpec.from_dict(spec)

    spec["layers"][6] |= {"in_height": 1, "in_width": 1, "in_channels": 24, "kernel_height": 1, "kernel_width": 1}
    assert ModelSpec.from_dict(spec).blocks[2].fan_in == 24


def test_a_network_that_ends_in_a_map_is_refused() -> None:
    spec = CONV.to_dict()
    spec["layers"] = [
        *spec["layers"][:1],
        {"kind": "l1_batch_norm", "name": "norm1", "features": 4},
        {"kind": "softmax_cross_entropy", "name": "loss", "classes": 288},
    ]

    with pytest.raises(SpecError, match="'loss' needs one number a class, but layer 'conv1' gives a map of 9 x 8 x 4"):
        ModelSpec.from_dict(spec)

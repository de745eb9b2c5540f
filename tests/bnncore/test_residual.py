"""Residual networks: their specs, their parts, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bnncore.errors import SpecError
from bnncore.layers import Conv2d, Residual, Sign
from bnncore.optimizer import resolve_preset
from bnncore.plan import plan_memory
from bnncore.spec import ModelSpec
from bnncore.zoo import ZOO, binarynet, bireal18, build, cnv, mlp, resnete18, sensor1d
from tests.bnncore.spec_edits import edit

SMALL = resnete18((8, 8), (3, 5), 2, 4)
LARGE = resnete18((64, 64, 3), (4, 6), 1, 10)


def test_specs_of_chains_keep_their_digests() -> None:
    assert {build(name).digest[:8] for name in ("mlp", "cnv", "binarynet", "sensor1d")} == {
        "f439ff4a",
        "3b1ec9d8",
        "4ca7de15",
        "ad069413",
    }


def test_a_residual_layer_holds_its_body_and_its_shortcut() -> None:
    layers = SMALL.to_dict()["layers"]

    assert SMALL.to_dict()["version"] == 2
    assert [layer["kind"] for layer in layers] == [
        *("conv2d", "l1_batch_norm", "relu", "l1_batch_norm"),
        *["residual"] * 4,
        *("relu", "avg_pool2d", "dense", "softmax_cross_entropy"),
    ]
    assert layers[4] == {
        "kind": "residual",
        "name": "unit1",
        "body": [
            {"kind": "sign", "name": "sign1"},
            {
                "kind": "binary_conv2d",
                "name": "conv1",
                "in_height": 8,
                "in_width": 8,
                "in_channels": 3,
                "out_channels": 3,
                "kernel_height": 3,
                "kernel_width": 3,
                "stride": 1,
                "padding": "same",
            },
            {"kind": "l1_batch_norm", "name": "norm1", "features": 3},
        ],
    }
    assert [layer["kind"] for layer in layers[6]["shortcut"]] == ["avg_pool2d", "conv2d", "l1_batch_norm"]


@pytest.mark.parametrize("spec", [SMALL, LARGE, bireal18((16, 16, 3), (4,), 1, 3), resnete18(), bireal18()])
def test_reading_gives_back_what_was_written(spec: ModelSpec) -> None:
    assert ModelSpec.from_json(spec.to_json()) == spec
    assert ModelSpec.from_json(json.dumps(spec.to_dict(), indent=1)).digest == spec.digest


def test_a_value_that_is_a_default_may_be_written_out() -> None:
    spec = SMALL.to_dict()
    spec["layers"][4]["body"][0]["gradient"] = "clip"
    spec["layers"][4]["shortcut"] = []

    assert ModelSpec.from_dict(spec) == SMALL


def test_resnete18_is_the_papers() -> None:
    network = resnete18().residual
    assert network is not None
    stem = network.stem

    assert stem.conv == Conv2d("stem", 224, 224, 3, 64, 7, 7, 2, "same")
    assert stem.pool is not None
    assert (stem.conv.out_map, stem.pool.out_map) == ((112, 112, 64), (56, 56, 64))
    assert [unit.conv.out_channels for unit in network.units] == [64] * 4 + [128] * 4 + [256] * 4 + [512] * 4
    assert [i for i, unit in enumerate(network.units, start=1) if unit.conv.stride == 2] == [5, 9, 13]
    assert [i for i, unit in enumerate(network.units, start=1) if unit.shortcut is not None] == [5, 9, 13]
    assert (network.head.pool.in_map, network.head.dense.out_features) == ((7, 7, 512), 1000)
    assert [len(stage) for stage in network.stages] == [4, 4, 4, 4]
    assert resnete18().num_binary_weights == 10_985_472


def test_bireal18_is_resnete18_with_another_gradient_of_the_sign() -> None:
    plain, bireal = resnete18().residual, bireal18().residual
    assert plain is not None
    assert bireal is not None

    assert [unit.sign.gradient for unit in bireal.units] == ["approx"] * 16
    assert [unit.sign.gradient for unit in plain.units] == ["clip"] * 16
    assert (bireal.stem, bireal.head) == (plain.stem, plain.head)


def test_small_images_get_a_stem_that_keeps_their_size() -> None:
    network = resnete18((32, 32, 3), classes=10).residual
    assert network is not None

    assert network.stem.pool is None
    assert network.stem.out_map == (32, 32, 64)
    assert network.head.pool.in_map == (4, 4, 512)


def test_tensors_are_named_after_their_layers() -> None:
    assert [(tensor.name, tensor.shape, tensor.role) for tensor in SMALL.tensors if not tensor.is_statistic] == [
        ("stem.weight", (3, 3, 3, 1), "real_weight"),
        ("stem_norm1.beta", (3,), "beta"),
        ("stem_norm2.beta", (3,), "beta"),
        ("conv1.weight", (3, 3, 3, 3), "weight"),
        ("norm1.beta", (3,), "beta"),
        ("conv2.weight", (3, 3, 3, 3), "weight"),
        ("norm2.beta", (3,), "beta"),
        ("conv3.weight", (5, 3, 3, 3), "weight"),
        ("norm3.beta", (5,), "beta"),
        ("shortcut3_conv.weight", (5, 1, 1, 3), "real_weight"),
        ("shortcut3_norm.beta", (5,), "beta"),
        ("conv4.weight", (5, 3, 3, 5), "weight"),
        ("norm4.beta", (5,), "beta"),
        ("dense.weight", (4, 5), "real_weight"),
        ("dense.bias", (4,), "bias"),
    ]
    assert SMALL.classes == 4


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("version", 1, "version 2 of the model spec is of residual networks and 1 of all others, got 1"),
        ("layers.1", ..., "layer 'stem_relu' (layers[1]) must be l1_batch_norm, got relu"),
        ("layers.1.features", 4, "'stem_norm1' takes 4 features but layer 'stem' gives a map of 8 x 8 x 3"),
        ("layers.0.in_height", 9, "layer 'stem' takes a map of 9 x 8 x 1 but the input gives 64"),
        ("layers.4.body", {}, "layers[4].body must be a list"),
        ("layers.4.body", [], "the body of layer 'unit1' must go on with sign after layer 'stem', but end there"),
        ("layers.4.body.0.kind", "residual", "layers[4].body[0] must have a kind of"),
        ("layers.4.body.0.gradient", "tanh", "gradient of layer 'sign1' must be one of ['clip', 'approx'], got 'tanh'"),
        ("layers.4.body.0.name", "stem", "'stem' is used twice (layers[4].body[0])"),
        ("layers.4.body.1.stride", 2, "body of layer 'unit1' gives a map of 4 x 4 x 3 but it takes a map of 8 x 8 x 3"),
        ("layers.4.body.1.in_width", 7, "'conv1' takes a map of 8 x 7 x 3 but layer 'stem' gives a map of 8 x 8 x 3"),
        ("layers.6.shortcut", ..., "layer 'unit3' gives a map of 4 x 4 x 5 but it takes a map of 8 x 8 x 3"),
        (
            "layers.6.shortcut.0",
            ...,
            "'shortcut3_conv' takes a map of 4 x 4 x 3 but layer 'unit2' gives a map of 8 x 8",
        ),
        ("layers.6.shortcut.2", ..., "the shortcut of layer 'unit3' must go on with l1_batch_norm after"),
        ("layers.6.shortcut.1.stride", 2, "must have a kernel of 1 x 1 and stride 1, got 1 x 1 and 2"),
        ("layers.8.kind", "sign", "layer 'relu' (layers[8]) must be avg_pool2d, got sign"),
        ("layers.9.pool_height", 2, "window of layer 'pool' must be its whole map, 4 x 4, got 2 x 4"),
        ("layers.10.in_features", 6, "layer 'dense' takes 6 features but layer 'pool' gives a map of 1 x 1 x 5"),
        ("layers.11.classes", 5, "layer 'loss' tells 5 classes apart but layer 'dense' gives a map of 1 x 1 x 4"),
        ("layers.11", ..., "layers must go on with softmax_cross_entropy after layer 'dense'"),
        ("layers.0.scale", 1, "unknown ['scale']"),
    ],
)
def test_an_invalid_residual_network_is_refused_by_name(path: str, value: Any, message: str) -> None:
    spec = SMALL.to_dict()
    edit(spec, path, value)
    with pytest.raises(SpecError) as caught:
        ModelSpec.from_json(json.dumps(spec))

    assert message in str(caught.value)


def test_a_layer_too_many_is_refused() -> None:
    inside, behind = SMALL.to_dict(), SMALL.to_dict()
    inside["layers"][4]["body"].append({"kind": "relu", "name": "more"})
    behind["layers"].append({"kind": "relu", "name": "more"})

    with pytest.raises(SpecError, match="no layer may follow layer 'conv1' in the body of layer 'unit1', got 'more'"):
        ModelSpec.from_dict(inside)
    with pytest.raises(SpecError, match="no layer may follow the loss, got 'more'"):
        ModelSpec.from_dict(behind)


def test_residual_layers_are_needed_and_a_chain_takes_none_of_their_parts() -> None:
    spec = SMALL.to_dict()
    spec["layers"] = [layer for layer in spec["layers"] if layer["kind"] != "residual"]
    with pytest.raises(SpecError, match=r"layer 'relu' \(layers\[4\]\) must be residual, got relu"):
        ModelSpec.from_dict(spec)

    for name, key, value, message in [
        ("sign1", "gradient", "approx", "gradient of layer 'sign1' must be 'clip' in a chain"),
        ("pool1", "stride", 1, "windows of layer 'pool1' must lie side by side inside the map"),
        ("pool1", "padding", "other", r"padding of layer 'pool1' must be one of \['same', 'valid'\]"),
        ("pool1", "padding", "same", "a window with padding 'same' must have odd sides"),
    ]:
        chain = binarynet((8, 8), (4,), 1, (), 3).to_dict()
        next(layer for layer in chain["layers"] if layer["name"] == name)[key] = value
        with pytest.raises(SpecError, match=message):
            ModelSpec.from_dict(chain)


def test_maps_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(SpecError, match=r"halves its map .* has one of 5 x 8 before stage 3"):
        resnete18((10, 16), (4, 4, 4), 1, 2)
    with pytest.raises(SpecError, match="at least one stage"):
        build("bireal18", widths=[])


def test_what_works_on_chains_says_why_it_cannot_take_a_residual_network() -> None:
    with pytest.raises(SpecError, match=r"'resnete18' is a residual network, and this needs a chain of binary blocks"):
        _ = SMALL.blocks
    with pytest.raises(SpecError, match=r"preset 'paper' trains chains of binary blocks only.*give --preset standard"):
        plan_memory(SMALL, batch_size=1, preset=resolve_preset("paper"))


def test_the_zoo_has_the_papers_networks() -> None:
    assert set(ZOO) == {"mlp", "cnv", "binarynet", "sensor1d", "resnete18", "bireal18"}
    assert all(spec.residual is None for spec in (mlp(), cnv(), binarynet(), sensor1d()))
    assert isinstance(SMALL.layers[4], Residual)
    assert SMALL.layers[4].body[0] == Sign("sign1")

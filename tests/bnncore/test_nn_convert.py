"""Networks turned into specs and states, and back: nothing is lost, and what cannot be turned is named."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnncore.checkpoint import save_checkpoint
from bnncore.engine import Engine
from bnncore.errors import CheckpointError, ShapeError, SpecError
from bnncore.layers import BinaryDense, L1BatchNorm, SoftmaxCrossEntropy
from bnncore.spec import ModelSpec
from bnncore.zoo import ZOO, binarynet, cnv, mlp, sensor1d
from tests.bnncore.engine_cases import GEOMETRIES, Case, random_batch
from tests.bnncore.random_states import assert_same_state, random_state, specs

torch: Any = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from bnncore.nn import (  # noqa: E402
    BinaryConv2d,
    BinaryLinear,
    BinarySign,
    L1BatchNorm1d,
    L1BatchNorm2d,
    Sequential,
    convert,
    zoo,
)

SMALL = {
    "mlp": {"input_shape": [6, 5], "widths": [16, 16], "classes": 3},
    "cnv": {"input_shape": [12, 12, 3], "widths": [8, 16], "convs_per_stage": 1, "dense_widths": [16], "classes": 3},
    "binarynet": {"input_shape": [8, 8, 2], "widths": [8, 16], "convs_per_stage": 1, "dense_widths": [], "classes": 3},
    "sensor1d": {"input_shape": [16, 3], "widths": [8, 8], "kernel": 3, "dense_widths": [8], "classes": 3},
}
GENTLE = [name for name, case in GEOMETRIES.items() if case.spec.num_binary_weights < 1_000_000]


def read_back(network: Any, spec: ModelSpec) -> ModelSpec:
    first = spec.blocks[0]
    input_map = (first.in_height, first.in_width, first.in_channels)
    return convert.spec_of(network, spec.input_shape, input_map=input_map, name=spec.name, loss=spec.layers[-1].name)


def check_there_and_back(spec: ModelSpec, seed: int, statistics: bool, dtype: Any) -> None:
    state = random_state(spec, seed, statistics=statistics, dtype=dtype)

    network = convert.network(spec, state)

    assert read_back(network, spec) == spec
    assert_same_state(convert.state_of(network, spec, dtype=dtype), state)


@given(specs, st.integers(0, 99), st.booleans(), st.sampled_from([np.int8, np.float32]))
@settings(max_examples=60)
def test_any_network_comes_back_bit_for_bit(spec: ModelSpec, seed: int, statistics: bool, dtype: Any) -> None:
    check_there_and_back(spec, seed, statistics, dtype)


@pytest.mark.parametrize("name", GENTLE)
def test_any_geometry_comes_back_and_predicts_what_the_engine_does(name: str) -> None:
    case: Case = GEOMETRIES[name]
    check_there_and_back(case.spec, 0, True, np.int8)
    state = random_state(case.spec, 1)
    engine = Engine(case.spec, batch_size=case.batch_size)
    engine.load_state(state)
    engine.input[:], _ = random_batch(case, 2)

    network = convert.network(case.spec, state).eval()
    with torch.no_grad():
        logits = network(convert.to_input(case.spec, engine.input))

    assert np.array_equal(logits.argmax(1).numpy(), engine.predict_batch(case.batch_size))


@pytest.mark.parametrize("name", SMALL)
def test_the_zoo_is_that_of_the_engine(name: str) -> None:
    spec = ZOO[name](**SMALL[name])

    network = getattr(zoo, name)(**SMALL[name])

    assert read_back(network, spec) == spec
    assert network(convert.to_input(spec, np.zeros((4, spec.input_features), np.uint8))).shape == (4, 3)
    assert sum(p.numel() for p in network.parameters() if p.dim() > 1) == spec.num_binary_weights


@pytest.mark.parametrize("name", SMALL)
def test_a_checkpoint_goes_on_in_the_engine_and_comes_back(name: str, tmp_path: Path) -> None:
    spec = ZOO[name](**SMALL[name])
    network, generator = convert.network(spec), np.random.default_rng(0)
    samples = generator.integers(0, 256, (20, spec.input_features), dtype=np.uint8)
    network(convert.to_input(spec, samples))
    convert.save_network(tmp_path / "torch.safetensors", network, spec, dtype=np.int8)

    again, spec_again = convert.load_network(tmp_path / "torch.safetensors")
    engine = Engine(spec_again, batch_size=20)
    engine.load_state(convert.state_of(again, spec_again, dtype=np.int8))
    engine.input[:], engine.labels[:] = samples, generator.integers(0, 3, 20)
    engine.step()
    save_checkpoint(tmp_path / "engine.safetensors", spec_again, engine.state())
    back, _ = convert.load_network(tmp_path / "engine.safetensors")

    assert spec_again == spec
    assert_same_state(convert.state_of(back, spec, dtype=np.int8), engine.state())
    with torch.no_grad():
        predictions = back.eval()(convert.to_input(spec, samples)).argmax(1)
    assert np.array_equal(predictions.numpy(), engine.predict_batch(20))


def test_weights_beyond_one_are_saved_as_the_next_step_would_clip_them() -> None:
    spec = mlp(input_shape=(2,), widths=(), classes=2)
    network = convert.network(spec)
    network[0].weight.data = torch.tensor([[1.5, -2.0], [0.25, -0.0]])

    assert convert.state_of(network, spec)["dense1.weight"].tolist() == [[1.0, -1.0], [0.25, 0.0]]


def usual_network() -> Any:
    """Built as a user would, by numbers, in Sequentials, with what only training needs."""
    return nn.Sequential(
        Sequential(BinaryConv2d(3, 8, 3, padding=1), nn.MaxPool2d(2), L1BatchNorm2d(8), BinarySign()),
        nn.Dropout2d(0.1),
        nn.Sequential(BinaryConv2d(8, 6, 3, stride=2), L1BatchNorm2d(6), BinarySign()),
        nn.Flatten(),
        nn.Identity(),
        BinaryLinear(6, 4),
        L1BatchNorm1d(4),
    )


def test_a_network_of_ones_own_has_a_spec_named_by_its_paths() -> None:
    spec = convert.spec_of(usual_network(), (8, 8, 3), name="mine")

    assert [layer.name for layer in spec.layers] == [
        "layer0-0",
        "layer0-1",
        "layer0-2",
        "layer0-3",
        "layer2-0",
        "layer2-1",
        "layer2-2",
        "layer5",
        "layer6",
        "loss",
    ]
    assert [(b.conv_height, b.pool_height, b.pad_height, b.stride) for b in spec.blocks] == [
        (8, 2, 1, 1),
        (1, 1, 0, 2),
        (1, 1, 0, 1),
    ]


def test_an_mlp_that_flattens_images_reads_them_in_the_engines_order() -> None:
    network = Sequential(nn.Flatten(), BinaryLinear(2 * 3 * 2, 5), L1BatchNorm1d(5))
    samples = np.random.default_rng(0).integers(0, 256, (7, 2, 3, 2), dtype=np.uint8)
    x = torch.from_numpy((2.0 * samples.transpose(0, 3, 1, 2) - 255).astype(np.float32) / 256)
    network(x)
    spec = convert.spec_of(network, (2, 3, 2))
    engine = Engine(spec, batch_size=7)
    engine.load_state(convert.state_of(network, spec, dtype=np.int8))

    engine.input[:] = samples.reshape(7, -1)

    assert np.array_equal(engine.predict_batch(7), network.eval()(x).argmax(1).numpy())


def network_with(path_of: str, module: Any) -> Any:
    modules = OrderedDict(usual_network().named_children())
    modules[path_of] = module
    return nn.Sequential(modules)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (network_with("2", nn.Sequential(nn.Conv2d(8, 6, 3), nn.ReLU())), r"2\.0 is a Conv2d, which a spec cannot"),
        (network_with("6", nn.Softmax(1)), "6 is a Softmax, which a spec cannot describe"),
        (nn.Linear(3, 2), "the network itself is a Linear"),
        (network_with("2", BinaryConv2d(8, 6, 3, groups=2)), "2 must have one group, no dilation and one stride"),
        (network_with("2", BinaryConv2d(8, 6, 3, padding=2)), r"2 must pad with 0 or with \(kernel_size - 1\) / 2"),
        (network_with("2", BinaryConv2d(7, 6, 3)), "2 reads 7 channels, but what comes to it are maps of 4 x 4 x 8"),
        (network_with("2", nn.MaxPool2d(3, 2)), "2: windows of a max pool must neither overlap"),
        (network_with("6", L1BatchNorm1d(4, 1e-5)), "6 must have eps=0, affine=True and track_running_stats=True"),
        (nn.Sequential(L1BatchNorm1d(4)), "0 must follow a BinaryConv2d or BinaryLinear"),
        (nn.Sequential(BinaryLinear(192, 4), BinarySign()), "l1_batch_norm must follow"),
    ],
)
def test_what_a_spec_cannot_say_is_named_with_its_path(network: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        convert.spec_of(network, (8, 8, 3))


def test_a_spec_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    newer = {**mlp().to_dict(), "version": 99}

    with pytest.raises(SpecError, match="of the model spec, got 99; upgrade it with"):
        convert.network(ModelSpec.from_json(json.dumps(newer)))
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError):
        convert.load_network(tmp_path / "no.safetensors")


def test_other_shapes_are_refused() -> None:
    spec, wider = mlp(widths=(8,)), mlp(widths=(9,))

    with pytest.raises(ShapeError, match=r"dense1.weight must have shape \[8, 784\], got \[9, 784\]"):
        convert.network(spec, random_state(wider, 0))
    with pytest.raises(ShapeError, match=r"dense1.weight must have shape \[9, 784\] in PyTorch, got \[8, 784\]"):
        convert.load_state(convert.network(spec), wider, random_state(wider, 0))
    with pytest.raises(ShapeError, match="has 3 blocks, the network has 2"):
        convert.state_of(convert.network(spec), mlp(widths=(8, 8)))


def test_a_layer_that_pytorch_has_no_name_for_is_refused() -> None:
    layers = (BinaryDense("forward", 4, 2), L1BatchNorm("norm", 2), SoftmaxCrossEntropy("loss", 2))

    with pytest.raises(SpecError, match="PyTorch cannot call a module 'forward'"):
        convert.network(ModelSpec("named", (4,), layers))


def test_networks_of_the_paper_have_specs() -> None:
    for spec in (mlp(), cnv(), binarynet(), sensor1d()):
        assert read_back(convert.network(spec), spec).digest == spec.digest

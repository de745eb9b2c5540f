"""Residual networks turned into specs and states, and back: nothing is lost, and what cannot be turned is named."""

from __future__ import annotations

import dataclasses
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
from bnncore.errors import ShapeError, SpecError
from bnncore.layers import BinaryConv2d, Conv2d, L1BatchNorm, Layer, MaxPool2d, Residual, Sign
from bnncore.optimizer import resolve_preset
from bnncore.spec import ModelSpec
from bnncore.state import State, without_statistics
from bnncore.zoo import ZOO, mlp, resnete18
from tests.bnncore.random_states import assert_same_state
from tests.bnncore.residual_cases import CASES, SMALL, random_batch, residual_specs, start

torch: Any = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from bnncore import nn as ours  # noqa: E402
from bnncore.nn import BinarySign, L1BatchNorm2d, Sequential, convert, zoo  # noqa: E402

ALL = {**CASES, **SMALL}


def random_state(spec: ModelSpec, seed: int, *, statistics: bool = True, dtype: Any = np.int8) -> State:
    state, generator = start(spec, seed, dtype=dtype), np.random.default_rng(seed)
    for tensor in spec.tensors:
        if tensor.role == "mean_abs_dev":
            state[tensor.name] = generator.uniform(0.5, 40, tensor.shape).astype(np.float32)
        elif tensor.role == "mean":
            state[tensor.name] = generator.normal(0, 5, tensor.shape).astype(np.float32)
    return state if statistics else without_statistics(state)


def read_back(network: Any, spec: ModelSpec) -> ModelSpec:
    return convert.spec_of(network, spec.input_shape, name=spec.name, loss=spec.layers[-1].name)


def in_other_words(spec: ModelSpec) -> ModelSpec:
    """Say the same where a spec has two words for one thing: the stride of windows side by side, pads of nothing."""

    def same(layer: Layer) -> Layer:
        if isinstance(layer, MaxPool2d) and layer.is_plain:
            return dataclasses.replace(layer, stride=None)
        if isinstance(layer, Conv2d) and layer.stride != 1 and (layer.pad_height, layer.pad_width) == (0, 0):
            return dataclasses.replace(layer, padding="valid")
        return layer

    return dataclasses.replace(spec, layers=tuple(same(layer) for layer in spec.layers))


@given(residual_specs, st.integers(0, 99), st.booleans(), st.sampled_from([np.int8, np.float32]))
@settings(max_examples=60, deadline=None)
def test_any_network_comes_back_bit_for_bit(spec: ModelSpec, seed: int, statistics: bool, dtype: Any) -> None:
    state = random_state(spec, seed, statistics=statistics, dtype=dtype)

    network = convert.network(spec, state)

    assert read_back(network, spec) == in_other_words(spec)
    assert_same_state(convert.state_of(network, spec, dtype=dtype), state)


@given(residual_specs, st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_any_network_predicts_what_the_engine_does(spec: ModelSpec, batch: int, seed: int) -> None:
    state = random_state(spec, seed)
    engine = Engine(spec, batch_size=batch, preset=resolve_preset())
    engine.load_state(state)
    engine.input[:], engine.labels[:] = random_batch(spec, batch, seed)

    with torch.no_grad():
        logits = convert.network(spec, state).eval()(convert.to_input(spec, engine.input))

    # float32 sums of at most 70 features in another order: bits of the logits may differ, not the loss.
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(engine.labels.copy()).long())
    assert engine.evaluate_batch(batch).loss == pytest.approx(loss.item(), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", ["resnete18", "bireal18"])
def test_the_zoo_is_that_of_the_engine(name: str) -> None:
    for params in ({"input_shape": [32, 32, 3], "widths": [8, 16], "classes": 10}, {"widths": [4, 8], "classes": 3}):
        spec = ZOO[name](**params)

        network = getattr(zoo, name)(**params)

        assert read_back(network, spec).digest == spec.digest
        samples = np.zeros((2, spec.input_features), np.uint8)
        assert network(convert.to_input(spec, samples)).shape == (2, params["classes"])


@pytest.mark.parametrize("name", ALL)
def test_a_checkpoint_goes_on_in_the_engine_and_comes_back(name: str, tmp_path: Path) -> None:
    spec, batch = ALL[name]
    network = convert.network(spec)
    u, labels = random_batch(spec, batch, 0)
    network(convert.to_input(spec, u))
    convert.save_network(tmp_path / "torch.safetensors", network, spec, dtype=np.int8)

    again, spec_again = convert.load_network(tmp_path / "torch.safetensors")
    engine = Engine(spec_again, batch_size=batch, preset=resolve_preset())
    engine.load_state(convert.state_of(again, spec_again, dtype=np.int8))
    engine.input[:], engine.labels[:] = u, labels
    engine.step()
    save_checkpoint(tmp_path / "engine.safetensors", spec_again, engine.state())
    back, _ = convert.load_network(tmp_path / "engine.safetensors")

    assert spec_again == spec
    assert_same_state(convert.state_of(back, spec, dtype=np.int8), engine.state())
    with torch.no_grad():
        predictions = back.eval()(convert.to_input(spec, u)).argmax(1)
    assert np.array_equal(predictions.numpy(), engine.predict_batch(batch))


def unit(channels: int, out: int, stride: int = 1) -> Any:
    """As a user would write it: every unit with the same names."""
    body = OrderedDict(
        sign=BinarySign("approx"),
        conv=ours.BinaryConv2d(channels, out, 3, stride=stride, padding=1),
        norm=L1BatchNorm2d(out),
    )
    if stride == 1:
        return ours.Residual(body)
    return ours.Residual(body, [nn.AvgPool2d(2), nn.Conv2d(channels, out, 1, bias=False), L1BatchNorm2d(out)])


def usual_network() -> Any:
    return Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        L1BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Sequential(unit(8, 8), nn.Dropout2d(0.1), unit(8, 8)),
        unit(8, 12, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 4),
    )


def test_a_network_of_ones_own_has_a_spec_named_by_its_paths() -> None:
    spec = convert.spec_of(usual_network(), (16, 16, 3), name="mine")

    assert [layer.name for layer in spec.layers] == [
        "layer0",
        "layer1",
        "layer2",
        "layer3",
        "layer4-0",
        "layer4-2",
        "layer5",
        "layer6",
        "layer8",
        "loss",
    ]
    last = spec.layers[6]
    assert isinstance(last, Residual)
    assert last.body == (
        Sign("layer5-body-sign", "approx"),
        BinaryConv2d("layer5-body-conv", 8, 8, 8, 12, 3, 3, 2, "same"),
        L1BatchNorm("layer5-body-norm", 12),
    )
    assert [layer.name for layer in last.shortcut] == [f"layer5-shortcut-{i}" for i in range(3)]
    state = convert.state_of(usual_network(), spec)
    assert read_back(convert.network(spec, state), spec) == spec


def network_with(position: int, module: Any) -> Any:
    modules = list(usual_network())
    modules[position] = module
    return nn.Sequential(*modules)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (network_with(2, nn.GELU()), "2 is a GELU, which a spec cannot describe: it knows"),
        (network_with(4, ours.Residual([nn.Tanh()])), r"4\.body\.0 is a Tanh, which a spec cannot describe"),
        (network_with(4, ours.Residual([unit(8, 8)])), r"4\.body\.0 is a Residual inside another one"),
        (network_with(0, nn.Conv2d(3, 8, 3, padding=1)), "0 must have no bias, one group"),
        (network_with(0, nn.Conv2d(3, 8, 3, padding=2, bias=False)), r"0 must pad with 0 or with \(kernel_size - 1\)"),
        (network_with(3, nn.MaxPool2d(3, (1, 2), 1)), "3 must have one stride for both sides, no dilation"),
        (network_with(6, nn.AvgPool2d(3, 1)), "6: windows of an average pool must neither overlap"),
        (network_with(8, nn.Linear(12, 4, bias=False)), "8 must have a bias, as real linear layers of a spec"),
        (network_with(1, L1BatchNorm2d(8, 1e-5)), "1 must have eps=0, affine=True and track_running_stats=True"),
        (network_with(5, unit(7, 12, 2)), r"5\.shortcut\.1 reads 7 channels, but what comes to it are maps of"),
        (network_with(1, nn.Identity()), "layer 'layer2' .* must be l1_batch_norm, got relu"),
        (network_with(5, unit(8, 12)), "the body of layer 'layer5' gives a map of .* but it takes a map of"),
    ],
)
def test_what_a_spec_cannot_say_is_named_with_its_path(network: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        convert.spec_of(network, (16, 16, 3))


def test_a_spec_of_a_newer_version_is_refused() -> None:
    newer = {**CASES["bare"][0].to_dict(), "version": 99}

    with pytest.raises(SpecError, match="of the model spec, got 99; upgrade it with"):
        convert.network(ModelSpec.from_json(json.dumps(newer)))


def test_other_shapes_and_networks_are_refused() -> None:
    spec, wider = (resnete18((8, 8), (width, 8), 2, 3) for width in (4, 6))
    network = convert.network(spec)

    with pytest.raises(ShapeError, match=r"stem.weight must have shape \[4, 3, 3, 1\], got \[6, 3, 3, 1\]"):
        convert.network(spec, random_state(wider, 0))
    with pytest.raises(ShapeError, match=r"stem.weight must have shape \[6, 3, 3, 1\], got \[4, 3, 3, 1\] in PyTorch"):
        convert.load_state(network, wider, random_state(wider, 0))
    with pytest.raises(ShapeError, match="has 18 layers with parameters, the network has 14"):
        convert.state_of(network, resnete18((8, 8), (4, 8), 3, 3))
    with pytest.raises(ShapeError, match="has 5 blocks, the network has 0"):
        convert.state_of(network, mlp((8, 8)))
    with pytest.raises(ShapeError, match="layers with parameters, the network has"):
        convert.state_of(convert.network(mlp((8, 8))), spec)


def test_a_layer_that_pytorch_has_no_name_for_is_refused() -> None:
    spec = CASES["bare"][0]
    unit = spec.layers[3]
    assert isinstance(unit, Residual)
    renamed = dataclasses.replace(unit, body=(Sign("forward"), *unit.body[1:]))

    with pytest.raises(SpecError, match=r"cannot call a module 'forward'; give layers\[3\]\.body\[0\] another name"):
        convert.network(dataclasses.replace(spec, layers=(*spec.layers[:3], renamed, *spec.layers[4:])))


def test_networks_of_the_paper_have_specs() -> None:
    for name in ("resnete18", "bireal18"):
        spec = ZOO[name]()
        assert read_back(convert.network(spec), spec).digest == spec.digest


def test_resnete18_in_full_runs_forward_as_the_engine_does() -> None:
    spec = resnete18()
    engine = Engine(spec, batch_size=1, preset=resolve_preset())
    engine.input[:], engine.labels[:] = random_batch(spec, 1, 0)
    network = convert.network(spec, without_statistics(engine.state()))

    with torch.no_grad():
        network(convert.to_input(spec, engine.input))
    engine.observe(0)

    there, here = engine.state(), convert.state_of(network, spec, dtype=np.int8)
    assert_same_state(here, there)

"""The standard algorithm in PyTorch, where it is there: the same network and the same steps as the native preset's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bnncore.bench.samples import make_batches
from bnncore.engine import Engine
from bnncore.optimizer import resolve_preset
from bnncore.spec import ModelSpec
from bnncore.zoo import binarynet, build, cnv, mlp, sensor1d

torch: Any = pytest.importorskip("torch")

from bnncore.nn import VARIANTS, variants_for  # noqa: E402
from bnncore.nn.standard import StandardNetwork, _ActivationSign  # noqa: E402
from bnncore.nn.trainer import StandardTrainer, prepare  # noqa: E402

SMALL = [
    mlp(input_shape=(6, 5), widths=(16, 16), classes=3),
    cnv(input_shape=(12, 12, 3), widths=(8, 16), convs_per_stage=1, dense_widths=(16,), classes=3),
    binarynet(input_shape=(8, 8, 2), widths=(8, 16), convs_per_stage=1, dense_widths=(16,), classes=3),
    sensor1d(input_shape=(16, 3), widths=(8, 8), kernel=3, dense_widths=(8,), classes=3),
]
EAGER = VARIANTS["eager"]


@pytest.mark.parametrize("model", ["mlp", "cnv", "binarynet", "sensor1d"])
def test_a_network_has_the_specs_parameters(model: str) -> None:
    spec = build(model)

    network = StandardNetwork(spec)

    betas = sum(block.out_channels for block in spec.blocks)
    assert sum(p.numel() for p in network.parameters()) == spec.num_binary_weights + betas
    assert all(p.dtype == torch.float32 for p in network.parameters())


@pytest.mark.parametrize("spec", SMALL, ids=lambda spec: spec.name)
def test_the_loss_falls_and_weights_stay_clipped(spec: ModelSpec) -> None:
    trainer = StandardTrainer(spec, step_size=1e-2)
    (batch,) = make_batches(spec, batch_size=30, count=1)

    losses = [trainer.step(*prepare(spec, EAGER, *batch)) for _ in range(20)]

    assert losses[-1] < 0.7 * losses[0]
    for name, parameter in trainer.network.named_parameters():
        assert name.endswith("beta") or parameter.abs().max() <= 1


@pytest.mark.parametrize("spec", SMALL, ids=lambda spec: spec.name)
def test_steps_are_those_of_the_native_preset(spec: ModelSpec) -> None:
    preset = resolve_preset("standard")
    engine = Engine(spec, batch_size=40, preset=preset, seed=1)
    trainer = StandardTrainer(spec, step_size=preset.optimizer.step_size)
    trainer.network.load_state(engine.state())

    for samples, labels in make_batches(spec, batch_size=40, count=3):
        engine.input[:], engine.labels[:] = samples, labels
        native, ours = engine.step().loss, trainer.step(*prepare(spec, EAGER, samples, labels))

        # Equal but for float32's rounding, which can turn the sign of a number next to 0.
        assert ours == pytest.approx(native, rel=5e-3)


@pytest.mark.parametrize("spec", SMALL, ids=lambda spec: spec.name)
def test_variants_take_the_same_first_steps(spec: ModelSpec) -> None:
    (batch,) = make_batches(spec, batch_size=30, count=1)

    losses = {}
    for variant in variants_for(spec):
        if not variant.compiled:  # which takes half a minute
            trainer = StandardTrainer(spec, variant)
            losses[variant.name] = [trainer.step(*prepare(spec, variant, *batch)) for _ in range(2)]

    for name, found in losses.items():
        assert found == pytest.approx(losses["eager"], rel=5e-3), name


def test_the_gradient_of_a_sign_passes_up_to_one() -> None:
    x = torch.tensor([-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, float(np.nextafter(np.float32(1), np.float32(2)))])
    x.requires_grad_()

    signs = _ActivationSign.apply(x, torch.ones(()))
    signs.backward(torch.full_like(x, 3.0))

    assert signs.tolist() == [-1, -1, -1, 1, 1, 1, 1]
    assert x.grad.tolist() == [0, 3, 3, 3, 3, 3, 0]


def test_variants_of_maps_are_left_out_where_there_are_none() -> None:
    assert [v.name for v in variants_for(mlp())] == ["eager", "fused Adam", "compiled"]
    assert len(variants_for(cnv())) == len(VARIANTS)

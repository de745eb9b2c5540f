"""Networks with every layer in every place where it may stand, and states of them, for tests of exports."""

from __future__ import annotations

import numpy as np

from bnncore.engine import Engine
from bnncore.layers import BinaryConv2d, BinaryDense, L1BatchNorm, Sign, SoftmaxCrossEntropy
from bnncore.optimizer import resolve_preset
from bnncore.spec import ModelSpec
from bnncore.state import State
from bnncore.zoo import binarynet, bireal18, cnv, mlp, resnete18, sensor1d
from tests.bnncore.residual_cases import bare, odd

AFTER_DENSE = ModelSpec(
    "after_dense",
    (3, 5),
    (
        BinaryDense("d1", 15, 70), L1BatchNorm("n1", 70), Sign("s1"),
        BinaryConv2d("c2", 1, 1, 70, 9, 1, 1, 1, "valid"), L1BatchNorm("n2", 9), Sign("s2"),
        BinaryDense("d3", 9, 3), L1BatchNorm("n3", 3), SoftmaxCrossEntropy("loss", 3),
    ),
)  # fmt: skip
SPECS = [
    mlp((9, 7), (70, 33), 5),
    cnv((14, 13, 2), (20, 70), 1, (33,), 4),
    binarynet((9, 11), (65, 17), 2, (), 3),
    sensor1d((24, 3), (16, 8), 5, (10,), 3),
    AFTER_DENSE,
    odd(),
    bare(),
    resnete18((32, 32, 3), (8, 16, 8, 16), 2, 5),
    bireal18((64, 96, 3), (8, 8, 8, 8), 2, 5),
]
"""All networks of the zoo, and all layers in all the places where they may stand."""


def trained(spec: ModelSpec, *, steps: int = 4) -> State:
    engine = Engine(spec, batch_size=13, preset=resolve_preset("bitfleet", None), seed=3)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        engine.input[:] = rng.integers(0, 256, engine.input.shape)
        engine.labels[:] = rng.integers(0, spec.classes, 13)
        engine.step()
    return engine.state()

"""Residual networks, their states and batches, for tests of the reference and of the engine."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from bnncore.layers import AvgPool2d, BinaryConv2d, Conv2d, Dense, L1BatchNorm, Layer, MaxPool2d, ReLU, Residual, Sign
from bnncore.layers import SoftmaxCrossEntropy as Loss
from bnncore.spec import ModelSpec
from bnncore.state import State
from bnncore.zoo import bireal18, resnete18


def odd() -> ModelSpec:
    """Maps of odd sizes, a 5 x 3 stem without padding or second norm, pools and a kernel of other shapes, no relu."""
    return ModelSpec(
        "odd",
        (13, 12, 2),
        (
            Conv2d("stem", 13, 12, 2, 5, 5, 3, 1, "valid"),
            L1BatchNorm("stem_norm", 5),
            MaxPool2d("stem_pool", 9, 10, 5, 3, 2, 2),
            Residual(
                "unit1", (Sign("s1", "approx"), BinaryConv2d("c1", 4, 5, 5, 5, 1, 3, 1, "same"), L1BatchNorm("n1", 5))
            ),
            Residual(
                "unit2",
                (Sign("s2"), BinaryConv2d("c2", 4, 5, 5, 70, 3, 3, 2, "valid"), L1BatchNorm("n2", 70)),
                (AvgPool2d("p2", 4, 5, 5, 3, 2), Conv2d("r2", 1, 2, 5, 70, 1, 1, 1, "valid"), L1BatchNorm("m2", 70)),
            ),
            Residual(
                "unit3",
                (Sign("s3"), BinaryConv2d("c3", 1, 2, 70, 9, 1, 1, 1, "valid"), L1BatchNorm("n3", 9)),
                (Conv2d("r3", 1, 2, 70, 9, 1, 1, 1, "valid"), L1BatchNorm("m3", 9)),
            ),
            AvgPool2d("pool", 1, 2, 9, 1, 2),
            Dense("dense", 9, 3),
            Loss("loss", 3),
        ),
    )


def bare() -> ModelSpec:
    """No second norm and no pool behind a relu, and a stage whose only unit starts it."""
    return ModelSpec(
        "bare",
        (6, 6),
        (
            Conv2d("stem", 6, 6, 1, 16, 3, 3, 1, "same"),
            L1BatchNorm("stem_norm", 16),
            ReLU("relu"),
            Residual("unit1", (Sign("s1"), BinaryConv2d("c1", 6, 6, 16, 16, 3, 3, 1, "same"), L1BatchNorm("n1", 16))),
            AvgPool2d("pool", 6, 6, 16, 6, 6),
            Dense("dense", 16, 4),
            Loss("loss", 4),
        ),
    )


CASES: dict[str, tuple[ModelSpec, int]] = {
    "small images": (resnete18((8, 8), (8, 16), 2, 10), 6),
    "max pool": (resnete18((64, 64, 3), (4, 6, 8), 1, 5), 3),
    "bireal": (bireal18((64, 64, 3), (4, 6), 2, 5), 2),
    "odd": (odd(), 5),
    "bare": (bare(), 4),
}
"""Networks and batch sizes by what they are the edge of."""


def start(spec: ModelSpec, seed: int, *, dtype: type[np.int8] | type[np.float32] = np.int8) -> State:
    """Give weights of usual size, betas of a tenth, statistics as before any step."""
    generator = np.random.default_rng(seed)
    state: State = {}
    for tensor in spec.tensors:
        if tensor.role == "weight":
            values = generator.integers(-60, 61, tensor.shape)
            values[values == 0] = 1  # the oracle of bop flips a weight by its sign
            state[tensor.name] = values.astype(np.int8) if dtype == np.int8 else (values / 127).astype(np.float32)
        elif tensor.role == "real_weight":
            width = np.sqrt(3 / np.prod(tensor.shape[1:]))
            state[tensor.name] = generator.uniform(-width, width, tensor.shape).astype(np.float32)
        elif tensor.role == "mean_abs_dev":
            state[tensor.name] = np.ones(tensor.shape, np.float32)
        else:
            state[tensor.name] = generator.normal(0, 0.1, tensor.shape).astype(np.float32)
    return state


def random_batch(spec: ModelSpec, batch_size: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Give uniform input and labels."""
    generator = np.random.default_rng(seed)
    u = generator.integers(0, 256, (batch_size, spec.input_features), dtype=np.uint8)
    return u, generator.integers(0, spec.classes, batch_size).astype(np.int32)


@st.composite
def _residual_specs(draw: st.DrawFn) -> ModelSpec:
    """A stem, one or two stages of a unit or two, and a head, in sizes of a few."""
    size = st.integers(1, 4)
    height, width, channels = draw(st.integers(3, 9)), draw(st.integers(3, 9)), draw(size)
    kernel = draw(st.sampled_from([1, 3]))
    conv = Conv2d("stem", height, width, channels, draw(size), kernel, kernel, draw(st.integers(1, 2)), "same")
    layers: list[Layer] = [conv, L1BatchNorm("stem_norm", conv.out_channels)]
    shape = conv.out_map
    if draw(st.booleans()):
        layers.append(ReLU("stem_relu"))
    if min(shape[:2]) >= 3 and draw(st.booleans()):
        pool = MaxPool2d("stem_pool", *shape, 3, 3, draw(st.integers(1, 3)), draw(st.sampled_from(["same", "valid"])))
        layers.append(pool)
        shape = pool.out_map
    if draw(st.booleans()):
        layers.append(L1BatchNorm("stem_norm2", shape[2]))
    for number in range(draw(st.integers(1, 3))):
        sign = Sign(f"s{number}", draw(st.sampled_from(["clip", "approx"])))
        if not draw(st.booleans()):
            body = BinaryConv2d(f"c{number}", *shape, shape[2], 3, 3, 1, "same")
            layers.append(Residual(f"u{number}", (sign, body, L1BatchNorm(f"n{number}", shape[2]))))
            continue
        out = draw(st.integers(1, 70))
        halves = shape[0] % 2 == shape[1] % 2 == 0 and draw(st.booleans())
        body = BinaryConv2d(f"c{number}", *shape, out, 3, 3, 2 if halves else 1, "same")
        pools: list[Layer] = [AvgPool2d(f"p{number}", *shape, 2, 2)] if halves else []
        rows, columns, _ = body.out_map
        way = Conv2d(f"r{number}", rows, columns, shape[2], out, 1, 1, 1, "valid")
        shortcut = (*pools, way, L1BatchNorm(f"m{number}", out))
        layers.append(Residual(f"u{number}", (sign, body, L1BatchNorm(f"n{number}", out)), shortcut))
        shape = body.out_map
    if draw(st.booleans()):
        layers.append(ReLU("relu"))
    classes = draw(st.integers(2, 5))
    layers += [AvgPool2d("pool", *shape, *shape[:2]), Dense("dense", shape[2], classes), Loss("loss", classes)]
    return ModelSpec("random", (height, width, channels), tuple(layers))


residual_specs = _residual_specs()

SMALL: dict[str, tuple[ModelSpec, int]] = {
    "resnete18": (resnete18((16, 16, 3), (8, 8, 16, 16), 4, 10), 8),
    "bireal18": (bireal18((16, 16, 3), (8, 8, 16, 16), 4, 10), 8),
}
"""The networks of the paper for small images, narrow, with batch sizes."""

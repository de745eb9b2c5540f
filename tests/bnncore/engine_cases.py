"""Networks and batches that put the engine on every edge of its geometry, and the comparison with the oracle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore._native import PaperEngine, StandardEngine
from bnncore.engine import Engine
from bnncore.layers import BinaryConv2d, BinaryDense, L1BatchNorm, Layer, MaxPool2d, Sign, SoftmaxCrossEntropy
from bnncore.optimizer import OPTIMIZERS
from bnncore.plan import MemoryPlan
from bnncore.reference import ReferenceEngine
from bnncore.spec import ModelSpec

OPTIMIZER_NAMES = sorted(OPTIMIZERS)


@dataclass(frozen=True)
class Conv:
    """A block that starts with a convolution; a window of a pool before its norm or after its sign, if it has one."""

    channels: int
    kernel: tuple[int, int] = (3, 3)
    padding: str = "valid"
    stride: int = 1
    before: tuple[int, int] | None = None
    after: tuple[int, int] | None = None


@dataclass(frozen=True)
class Case:
    """A network and the size of its batches."""

    spec: ModelSpec
    batch_size: int


def network(input_shape: tuple[int, ...], *blocks: Conv | int) -> ModelSpec:
    """Chain blocks, a number being a dense one; the last is the one with the classes."""
    layers: list[Layer] = []
    height, width, channels = (*input_shape, 1)[:3]
    for i, block in enumerate(blocks, start=1):
        before = after = None
        if isinstance(block, Conv):
            before, after = block.before, block.after
            sizes = (height, width, channels, block.channels, *block.kernel, block.stride)
            conv = BinaryConv2d(f"conv{i}", *sizes, block.padding)
            layers.append(conv)
            height, width, channels = conv.out_height, conv.out_width, block.channels
        else:
            layers.append(BinaryDense(f"dense{i}", height * width * channels, block))
            height, width, channels = 1, 1, block
        if before:
            layers.append(MaxPool2d(f"pool{i}", height, width, channels, *before))
            height, width = height // before[0], width // before[1]
        layers.append(L1BatchNorm(f"norm{i}", channels))
        layers.append(Sign(f"sign{i}") if i < len(blocks) else SoftmaxCrossEntropy("loss", channels))
        if after:
            layers.append(MaxPool2d(f"pool{i}", height, width, channels, *after))
            height, width = height // after[0], width // after[1]
    return ModelSpec("case", input_shape, tuple(layers))


def case(batch_size: int, input_shape: tuple[int, ...], *blocks: Conv | int) -> Case:
    """Give a case of ``network``."""
    return Case(network(input_shape, *blocks), batch_size)


PAIR = (2, 2)
GEOMETRIES: dict[str, Case] = {
    "valid": case(5, (9, 11, 3), Conv(20), Conv(17), 10),
    "a fan-in beyond 16 bits": case(3, (2, 2), 33_000, 3),
    "a convolution beyond 16 bits": case(1, (3, 4, 1), Conv(8_300, (1, 2)), Conv(2, (2, 2)), 2),
    "same": case(5, (6, 7, 3), Conv(20, padding="same"), Conv(17, padding="same"), 10),
    "even kernel": case(4, (6, 8, 2), Conv(9, (2, 4)), Conv(16, (4, 2)), 7),
    "pointwise": case(4, (3, 4, 5), Conv(33, (1, 1)), Conv(8, (1, 1), "same"), 10),
    "stride 2, even map": case(4, (8, 10, 3), Conv(18, (3, 3), "same", 2), Conv(16, (3, 3), "same", 2), 10),
    "stride 2, odd map": case(4, (7, 11, 3), Conv(18, (3, 3), "same", 2), Conv(16, (3, 3), "valid", 2), 4),
    "stride beyond kernel": case(6, (10, 13, 2), Conv(12, (2, 3), "valid", 4), Conv(11, (1, 1), "valid", 2), 5),
    "stride beyond map": case(6, (4, 5, 2), Conv(12, (1, 1), "valid", 2), Conv(11, (3, 3), "same", 7), 5),
    "kernel beyond map": case(6, (2, 3, 2), Conv(12, (5, 7), "same"), Conv(11, (7, 5), "same", 2), 5),
    "time": case(6, (1, 24, 6), Conv(20, (1, 9), "same", before=(1, 2)), Conv(18, (1, 9), "same", 2), 6),
    "columns": case(6, (13, 1, 2), Conv(20, (5, 1), "valid", after=(2, 1)), Conv(18, (3, 1), "same"), 6),
    "pool before the norm": case(5, (8, 8, 1), Conv(20, padding="same", before=PAIR), Conv(18, before=PAIR), 10),
    "pool after the sign": case(5, (10, 10, 1), Conv(20, after=PAIR), Conv(18, padding="same", after=PAIR), 10),
    "rest dropped before": case(5, (9, 7, 2), Conv(20, padding="same", before=(2, 3)), Conv(8, (2, 1)), 10),
    "rest dropped after": case(5, (11, 9, 2), Conv(20, after=(4, 2)), Conv(8, (2, 2), "valid"), 10),
    "one row left of a map": case(3, (5, 5, 2), Conv(20, (1, 1), before=(3, 5)), Conv(8, (1, 1), after=(1, 1)), 10),
    "window of 289 before": case(3, (17, 17, 2), Conv(4, padding="same", before=(17, 17)), 5),
    "window of 289 after": case(3, (19, 19, 2), Conv(4, after=(17, 17)), 5),
    "plain images": case(7, (9, 9), Conv(16, after=PAIR), Conv(5), 10),
    "ends in a convolution": case(6, (5, 5, 2), Conv(16), Conv(10)),
    "ends in padding": case(6, (3, 3, 2), Conv(16), Conv(9, (3, 3), "same"), Conv(10, (3, 5), "same")),
    "one convolution": case(6, (3, 4, 5), Conv(10, (3, 4))),
    "one strided convolution": case(6, (3, 4, 5), Conv(10, (3, 3), "same", 4)),
    "dense below": case(6, (4, 4), 12, 9, Conv(7, (1, 1)), Conv(5, (3, 3), "same"), 10),
    "dense layers above": case(6, (5, 6, 3), Conv(65), 70, 33, 10),
    "1 channel": case(4, (6, 6, 1), Conv(1), Conv(1, padding="same"), Conv(1, before=PAIR), 2),
    "63 channels": case(3, (5, 5, 63), Conv(63, padding="same"), Conv(63), 10),
    "64 channels": case(3, (5, 5, 64), Conv(64, padding="same", after=PAIR), Conv(64, (1, 1)), 10),
    "65 channels": case(3, (5, 5, 65), Conv(65, padding="same", before=PAIR), Conv(65, (2, 2)), 10),
    "130 channels": case(2, (17, 17, 3), Conv(130, (3, 3), "same"), Conv(130, (3, 3), "same", before=PAIR), 10),
    "wide fan-in": case(2, (6, 6, 150), Conv(300, (5, 5)), Conv(290, (1, 2), after=(2, 1)), 300),
    "one sample": case(1, (7, 8, 3), Conv(20, padding="same", before=PAIR), Conv(18, after=(1, 2)), 10),
    # 400 positions: two samples' gradients are spread at a time, and the last one alone.
    "slabs": case(5, (20, 20, 2), Conv(20, padding="same", before=PAIR), Conv(18, padding="same", before=(3, 3)), 10),
    # 8 and 4 channels at once: more than 26,562 and 53,125 values in a channel.
    "tiles of 8": case(9, (56, 56), Conv(20, padding="same"), Conv(5, (2, 2), "valid", 2), 3),
    "tiles of 4": case(18, (56, 56), Conv(21, padding="same", after=(8, 8)), 3),
}
"""By what each is the edge of."""
PACKINGS = ("latent8", "bop")
"""Optimizers that keep latent weights, and packed bits: geometry enters an update by no other way."""
SOME = (
    "same",
    "stride 2, odd map",
    "pool before the norm",
    "rest dropped after",
    "130 channels",
    "slabs",
    "tiles of 8",
)
"""Geometries for what costs too much on all."""
FEW = ("same", "pool before the norm", "130 channels")
"""Geometries for every optimizer."""


def random_batch(case: Case, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Give uniform input and labels."""
    generator = np.random.default_rng(seed)
    u = generator.integers(0, 256, (case.batch_size, case.spec.input_features), dtype=np.uint8)
    return u, generator.integers(0, case.spec.classes, case.batch_size).astype(np.int32)


def assert_same_step(found: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
    """Compare every intermediate of a step, and the products that the backward pass computes again."""
    for i, (here, there) in enumerate(zip(found["blocks"], wanted["blocks"], strict=True)):
        for key, value in there.items():
            assert np.array_equal(here[key], value), f"{where}, block {i}, {key}"
        assert np.array_equal(here["y_again"], there["y"]), f"{where}, block {i}, y_again"
    assert np.array_equal(found["logits"], wanted["logits"]), where
    assert (found["loss"], found["correct"]) == (wanted["loss"], wanted["correct"]), where


def assert_same_parameters(engine: Engine, oracle: ReferenceEngine, where: str) -> None:
    """Compare the weights and the batch norms of the two."""
    state = engine.state()
    for i, block in enumerate(engine.spec.blocks):
        weights = state[f"{block.linear}.weight"].reshape(block.out_channels, block.fan_in)
        expected = oracle.weights[i]
        if engine.preset.optimizer.name == "bop":  # it keeps the sign only
            expected = np.where(expected < 0, -127, 127)
        assert np.array_equal(weights, expected), f"{where}, {block.linear}"
        for name, values in (("beta", oracle.beta), ("mean", oracle.mean), ("mean_abs_dev", oracle.mean_abs_dev)):
            assert np.array_equal(state[f"{block.norm}.{name}"], values[i]), f"{where}, {block.norm}.{name}"


def gradients(engine: Engine, block: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of the last step, of a block's weights and of its beta; an engine in floats keeps them."""
    native = engine._native
    assert isinstance(native, StandardEngine | PaperEngine)
    return native.gradients(block)


def assert_no_overlap(plan: MemoryPlan) -> None:
    """No two tensors of a training plan that live at once share a byte, and all lie in the block."""

    for i, a in enumerate(plan.entries):
        assert a.offset % 64 == 0
        assert a.offset + a.num_bytes <= plan.peak_bytes
        for b in plan.entries[:i]:
            apart = a.offset + a.num_bytes <= b.offset or b.offset + b.num_bytes <= a.offset
            assert apart or not set(a.phases) & set(b.phases), f"{a.name} and {b.name}"

"""Networks by name, so that a job file or a command can say ``binarynet`` instead of listing layers.

``mlp``, ``cnv``, ``binarynet``, ``resnete18`` and ``bireal18`` with their defaults are the networks of Wang et al.,
"Enabling Binary Neural Network Training on the Edge" (arXiv 2102.04270); ``sensor1d`` is a small one for windows of
sensor readings.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from bnncore.errors import SpecError
from bnncore.layers import (
    AvgPool2d,
    BinaryConv2d,
    BinaryDense,
    Conv2d,
    Dense,
    L1BatchNorm,
    Layer,
    MaxPool2d,
    ReLU,
    Residual,
    Sign,
    SoftmaxCrossEntropy,
)
from bnncore.spec import ModelSpec

__all__ = ["ZOO", "binarynet", "bireal18", "build", "cnv", "mlp", "resnete18", "sensor1d"]

SMALL_IMAGE = 64
"""Images with a side below this get the stem for small images."""


def mlp(
    input_shape: Sequence[int] = (28, 28), widths: Sequence[int] = (256, 256, 256, 256), classes: int = 10
) -> ModelSpec:
    """Describe a fully connected network; the defaults are the 784-256x4-10 network of arXiv 2102.04270.

    Args:
      input_shape: shape of one sample.
      widths: features of each hidden layer; may be empty.
      classes: classes told apart.

    Raises:
      SpecError: a width is not a positive integer.
    """
    stack = _Stack("mlp", (1, 1, math.prod(input_shape)))
    stack.add_dense(widths, classes)
    return ModelSpec("mlp", tuple(input_shape), tuple(stack.layers))


def cnv(
    input_shape: Sequence[int] = (32, 32, 3),
    widths: Sequence[int] = (64, 128, 256),
    convs_per_stage: int = 2,
    dense_widths: Sequence[int] = (512, 512),
    classes: int = 10,
) -> ModelSpec:
    """Describe a VGG of 3 x 3 convolutions without padding; all stages but the last end in a 2 x 2 pool of the signs.

    Args:
      input_shape: height, width, and channels unless there is one.
      widths: channels of each stage.
      convs_per_stage: convolutions in each stage.
      dense_widths: features of each hidden dense layer; may be empty.
      classes: classes told apart.

    Raises:
      SpecError: a size is not a positive integer, or the image is too small for so many stages.
    """
    stack = _Stack("cnv", _image_shape("cnv", input_shape))
    for stage, width in enumerate(widths, start=1):
        for number in range(1, convs_per_stage + 1):
            pools = number == convs_per_stage and stage < len(widths)
            stack.add_conv(width, padding="valid", pool_after_sign=pools)
    stack.add_dense(dense_widths, classes)
    return ModelSpec("cnv", tuple(input_shape), tuple(stack.layers))


def binarynet(
    input_shape: Sequence[int] = (32, 32, 3),
    widths: Sequence[int] = (128, 256, 512),
    convs_per_stage: int = 2,
    dense_widths: Sequence[int] = (1024, 1024),
    classes: int = 10,
) -> ModelSpec:
    """Describe a VGG of padded 3 x 3 convolutions; every stage ends in a 2 x 2 pool in front of its batch norm.

    Args:
      input_shape: height, width, and channels unless there is one.
      widths: channels of each stage.
      convs_per_stage: convolutions in each stage.
      dense_widths: features of each hidden dense layer; may be empty.
      classes: classes told apart.

    Raises:
      SpecError: a size is not a positive integer, or the image is too small for so many stages.
    """
    stack = _Stack("binarynet", _image_shape("binarynet", input_shape))
    for width in widths:
        for number in range(1, convs_per_stage + 1):
            stack.add_conv(width, padding="same", pool_before_norm=number == convs_per_stage)
    stack.add_dense(dense_widths, classes)
    return ModelSpec("binarynet", tuple(input_shape), tuple(stack.layers))


def sensor1d(
    input_shape: Sequence[int] = (128, 6),
    widths: Sequence[int] = (64, 64, 128),
    kernel: int = 9,
    dense_widths: Sequence[int] = (128,),
    classes: int = 6,
) -> ModelSpec:
    """Describe a small network for windows of sensor readings: padded 1 x k convolutions along time.

    Every stage ends in a 1 x 2 pool in front of its batch norm, so that it sees twice the time of the one before it.

    Args:
      input_shape: readings in a window, and channels unless there is one.
      widths: channels of each stage of one convolution.
      kernel: readings under the kernel; odd.
      dense_widths: features of each hidden dense layer; may be empty.
      classes: classes told apart.

    Raises:
      SpecError: a size is not a positive integer, the kernel is even, or the window is too short for so many stages.
    """
    if len(input_shape) not in (1, 2):
        raise SpecError(
            f"model 'sensor1d' takes windows of [readings, channels], got samples of {list(input_shape)}. "
            "Choose cnv, binarynet or mlp for them"
        )
    readings, channels = (*input_shape, 1)[:2]
    stack = _Stack("sensor1d", (1, readings, channels))
    for width in widths:
        stack.add_conv(width, padding="same", kernel=(1, kernel), pool_before_norm=True, window=(1, 2))
    stack.add_dense(dense_widths, classes)
    return ModelSpec("sensor1d", tuple(input_shape), tuple(stack.layers))


def resnete18(
    input_shape: Sequence[int] = (224, 224, 3),
    widths: Sequence[int] = (64, 128, 256, 512),
    convs_per_stage: int = 4,
    classes: int = 1000,
) -> ModelSpec:
    """Describe ResNetE-18: a stream of real numbers to which every binary 3 x 3 convolution adds.

    The stem is a real 7 x 7 convolution of stride 2 and a 3 x 3 max pool of stride 2; on images with a side below 64,
    such as CIFAR-10's, a real 3 x 3 convolution of stride 1 and no pool. Every stage but the first halves the map: its
    first unit has stride 2, and its shortcut a 2 x 2 average pool and a real 1 x 1 convolution.

    Args:
      input_shape: height, width, and channels unless there is one.
      widths: channels of each stage.
      convs_per_stage: binary convolutions, each a residual unit, in each stage.
      classes: classes told apart.

    Raises:
      SpecError: a size is not a positive integer, or a map cannot be halved for the next stage.
    """
    return _residual_network("resnete18", input_shape, widths, convs_per_stage, classes, gradient="clip")


def bireal18(
    input_shape: Sequence[int] = (224, 224, 3),
    widths: Sequence[int] = (64, 128, 256, 512),
    convs_per_stage: int = 4,
    classes: int = 1000,
) -> ModelSpec:
    """Describe Bi-Real-18: ``resnete18`` whose signs have the gradient of ApproxSign.

    Its scale for each output channel, mean |W|, cancels against the batch norm that follows: see ``BinaryConv2d``.

    Args:
      input_shape: height, width, and channels unless there is one.
      widths: channels of each stage.
      convs_per_stage: binary convolutions, each a residual unit, in each stage.
      classes: classes told apart.

    Raises:
      SpecError: a size is not a positive integer, or a map cannot be halved for the next stage.
    """
    return _residual_network("bireal18", input_shape, widths, convs_per_stage, classes, gradient="approx")


ZOO: dict[str, Callable[..., ModelSpec]] = {
    "mlp": mlp,
    "cnv": cnv,
    "binarynet": binarynet,
    "sensor1d": sensor1d,
    "resnete18": resnete18,
    "bireal18": bireal18,
}
"""Builders by name; their keyword arguments are the parameters of a job file."""


def build(name: str, **params: Any) -> ModelSpec:
    """Build a network of the zoo.

    Args:
      name: a key of ``ZOO``.
      params: the builder's keyword arguments, as they come out of JSON.

    Raises:
      SpecError: the name or a parameter is unknown, or a value is not valid.
    """
    builder = ZOO.get(name)
    if builder is None:
        raise SpecError(f"model must be one of {', '.join(sorted(ZOO))}, got {name!r}")
    known = inspect.signature(builder).parameters
    unknown = sorted(set(params) - set(known))
    if unknown:
        raise SpecError(f"model {name!r} takes the parameters {list(known)}, got {unknown}")
    for key, value in params.items():
        if isinstance(known[key].default, tuple):
            if not isinstance(value, (list, tuple)) or not all(isinstance(size, int) for size in value):
                raise SpecError(f"{key} of model {name!r} must be a list of integers, got {value!r}")
        elif key != "classes" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise SpecError(f"{key} of model {name!r} must be a positive integer, got {value!r}")
    return builder(**params)


def _image_shape(model: str, input_shape: Sequence[int]) -> tuple[int, int, int]:
    if len(input_shape) not in (2, 3):
        raise SpecError(
            f"model {model!r} takes images of [height, width] or [height, width, channels], got samples of "
            f"{list(input_shape)}. Choose mlp for them, or sensor1d for windows of sensor readings"
        )
    height, width, channels = (*input_shape, 1)[:3]
    return height, width, channels


def _residual_network(
    model: str, input_shape: Sequence[int], widths: Sequence[int], convs_per_stage: int, classes: int, *, gradient: str
) -> ModelSpec:
    height, width, channels = _image_shape(model, input_shape)
    if not widths:
        raise SpecError(f"model {model!r} needs at least one stage, got no widths")
    small = min(height, width) < SMALL_IMAGE
    kernel, stride = (3, 1) if small else (7, 2)
    conv = Conv2d("stem", height, width, channels, widths[0], kernel, kernel, stride, "same")
    layers: list[Layer] = [conv, L1BatchNorm("stem_norm1", widths[0]), ReLU("stem_relu")]
    shape = conv.out_map
    if not small:
        pool = MaxPool2d("stem_pool", *shape, 3, 3, stride=2, padding="same")
        layers.append(pool)
        shape = pool.out_map
    layers.append(L1BatchNorm("stem_norm2", widths[0]))
    number = 0
    for stage, features in enumerate(widths):
        for unit in range(convs_per_stage):
            number += 1
            halves = stage > 0 and unit == 0
            if halves and (shape[0] % 2 or shape[1] % 2):
                raise SpecError(
                    f"model {model!r} halves its map for each stage after the first, but has one of {shape[0]} x "
                    f"{shape[1]} before stage {stage + 1}. Take fewer widths or images of other sizes"
                )
            layers.append(_unit(number, shape, features, 2 if halves else 1, gradient))
            shape = (shape[0] // 2, shape[1] // 2, features) if halves else shape
    layers += [
        ReLU("relu"),
        AvgPool2d("pool", *shape, shape[0], shape[1]),
        Dense("dense", shape[2], classes),
        SoftmaxCrossEntropy("loss", classes),
    ]
    return ModelSpec(model, tuple(input_shape), tuple(layers))


def _unit(number: int, shape: tuple[int, int, int], features: int, stride: int, gradient: str) -> Residual:
    """Give one residual layer; its shortcut has layers of its own where it halves the map."""
    body = (
        Sign(f"sign{number}", gradient),
        BinaryConv2d(f"conv{number}", *shape, features, 3, 3, stride, "same"),
        L1BatchNorm(f"norm{number}", features),
    )
    if stride == 1:
        return Residual(f"unit{number}", body)
    pool = AvgPool2d(f"shortcut{number}_pool", *shape, 2, 2)
    shortcut = (
        pool,
        Conv2d(f"shortcut{number}_conv", *pool.out_map, features, 1, 1, 1, "valid"),
        L1BatchNorm(f"shortcut{number}_norm", features),
    )
    return Residual(f"unit{number}", body, shortcut)


class _Stack:
    """Adds blocks and keeps track of the map that the next one reads."""

    def __init__(self, model: str, shape: tuple[int, int, int]) -> None:
        self.model = model
        self.layers: list[Layer] = []
        self.shape = self.input_shape = shape
        self._counts: dict[str, int] = {}

    def add_conv(
        self,
        channels: int,
        *,
        padding: str,
        kernel: tuple[int, int] = (3, 3),
        window: tuple[int, int] = (2, 2),
        pool_before_norm: bool = False,
        pool_after_sign: bool = False,
    ) -> None:
        conv = BinaryConv2d(self._name("conv"), *self.shape, channels, *kernel, stride=1, padding=padding)
        if padding == "valid":
            self._check_map(conv.name, kernel)
        self.layers.append(conv)
        self.shape = (conv.out_height, conv.out_width, channels)
        if pool_before_norm:
            self._add_pool(window)
        self._add_norm(channels)
        if pool_after_sign:
            self._add_pool(window)

    def add_dense(self, widths: Sequence[int], classes: int) -> None:
        for width in widths:
            self.layers.append(BinaryDense(self._name("dense"), math.prod(self.shape), width))
            self.shape = (1, 1, width)
            self._add_norm(width)
        self.layers.append(BinaryDense(self._name("dense"), math.prod(self.shape), classes))
        self.layers.append(L1BatchNorm(self._name("norm"), classes))
        self.layers.append(SoftmaxCrossEntropy("loss", classes))

    def _add_norm(self, features: int) -> None:
        self.layers.append(L1BatchNorm(self._name("norm"), features))
        self.layers.append(Sign(self._name("sign")))

    def _add_pool(self, window: tuple[int, int]) -> None:
        height, width, channels = self.shape
        pool = MaxPool2d(self._name("pool"), height, width, channels, *window)
        self._check_map(pool.name, window)
        self.layers.append(pool)
        self.shape = (height // window[0], width // window[1], channels)

    def _check_map(self, name: str, needed: tuple[int, int]) -> None:
        height, width, _ = self.shape
        if height < needed[0] or width < needed[1]:
            samples, advice = f"images of {self.input_shape[0]} x {self.input_shape[1]}", ", a smaller convs_per_stage"
            if self.model == "sensor1d":
                samples, advice = f"windows of {self.input_shape[1]} readings", ""
            raise SpecError(
                f"model {self.model!r} is too deep for {samples}: layer {name!r} needs a map of {needed[0]} x "
                f"{needed[1]}, but {height} x {width} is left. Take fewer widths{advice} or larger samples"
            )

    def _name(self, kind: str) -> str:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return f"{kind}{self._counts[kind]}"

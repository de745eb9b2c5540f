"""ResidualReference: the training step of a residual network (letters: see ``bnncore.reference``).

Forward, every unit adds its normalised products to the stream ``s``. Backward, it takes the same integers off again, so
that only the signs of ``s`` need to be kept: from them come the products, and the stream itself is recovered for the
gradient of the sign. The gradient of the stream is 8-bit integers too, of which each unit makes new ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.layers import BinaryConv2d
from bnncore.optimizer import FLOAT_OPTIMIZERS, OptimizerConfig
from bnncore.reference.fixed_point import (
    STREAM_UNITS,
    FixedPoint,
    average_pool,
    max_pool,
    scaled,
    spread,
    stream_limit,
    unpool,
)
from bnncore.reference.maps import convolve, input_gradient, weight_gradient
from bnncore.reference.norm import centred_gradient, channels_of
from bnncore.reference.optimizers import Moments, Normaliser, update_weights
from bnncore.reference.parameters import Norm, Parameter, Scale
from bnncore.reference.randomness import Purpose, padded_index, random_halves, random_stream, round_stochastic
from bnncore.reference.softmax import cross_entropy
from bnncore.residual import Shortcut, Unit
from bnncore.spec import ModelSpec
from bnncore.state import State

__all__ = ["ResidualReference"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

_F = np.float32
_INPUT_MAX, _STREAM_MAX = 255, 32767
_STREAM_BITS = 9
_STEM_BITS, _SHORTCUT_BITS = 14, 20
_SIDE = 1 << 16
"""Added to a unit's number for the random numbers of what stands beside its binary convolution: its shortcut."""


class ResidualReference:
    """Mirrors ``bnncore.engine.Engine`` on a residual network step for step.

    Args:
      spec: the network.
      optimizer: constants of its binary weights; all others are trained by Adam.
      state: parameters to start from, with running statistics.
      seed: what the engine was given.

    Attributes:
      weights: latent weights of each binary convolution by its name, [N, K].
      real: real-valued weights and the head's bias, by tensor name.
      norms: the batch norms, by name.
      saturated: numbers that did not fit their 8 bits, or their part of the stream, so far.
    """

    def __init__(self, spec: ModelSpec, optimizer: OptimizerConfig, state: State, seed: int) -> None:
        assert spec.residual is not None
        self.network = spec.residual
        self.optimizer = optimizer
        self.seed = seed
        self.steps = 0
        self.saturated = 0
        self.is_float = optimizer.name in FLOAT_OPTIMIZERS
        dtype = _F if self.is_float else np.int64
        convs = [unit.conv for unit in self.network.units]
        self.weights: dict[str, NDArray[Any]] = {
            c.name: state[f"{c.name}.weight"].astype(dtype).reshape(c.out_channels, c.fan_in) for c in convs
        }
        self.moments = {
            name: Moments(np.zeros(w.shape, dtype), np.zeros(w.shape, dtype)) for name, w in self.weights.items()
        }
        self.normalisers = {name: Normaliser() for name in self.weights}
        roles = ("real_weight", "bias")
        self.real = {tensor.name: Parameter(state[tensor.name]) for tensor in spec.tensors if tensor.role in roles}
        self.norms = {norm.name: Norm(norm.name, state) for norm in self.network.norms}
        self.scales = {unit.name: Scale() for unit in self.network.units}  # of the gradient that leaves it
        self.head_scale = Scale()
        self.limits: dict[str, int] = {}
        for stage in self.network.stages:
            self.limits |= {unit.name: stream_limit(1 + len(stage)) for unit in stage}

    def step(self, u: NDArray[np.uint8], labels: NDArray[np.int32], step_scale: float = 1.0) -> dict[str, Any]:
        """Train on u [B, input features] and labels [B].

        Returns:
          ``loss`` (mean, nats), ``correct`` (hits), ``logits`` [B, classes]; ``stem`` and, for each of ``units`` and
          ``head``, the integers that entered and left them on the way back, with their scales.
        """
        self._step: int | None = self.steps
        self._step_scale = step_scale
        stem, units, s = self._forward(u)
        logits, features = self._logits(s)
        loss, correct, grad_logits = self._softmax(logits, labels)
        head = self._head_backward(s, features, grad_logits)
        grad, scale = head["grad"], head["scale"]
        traces = []
        for i, unit in reversed(list(enumerate(self.network.units))):
            trace = self._unit_backward(i, unit, units[i], grad, scale)
            grad, scale = trace["grad_x"], trace["grad_x_scale"]
            traces.append(trace)
        stem |= self._stem_backward(stem, grad, scale)
        self.steps += 1
        result = {"stem": stem, "units": traces[::-1], "head": head, "s": s}
        return {**result, "logits": logits, "loss": loss, "correct": correct}

    def evaluate(self, u: NDArray[np.uint8], labels: NDArray[np.int32]) -> dict[str, Any]:
        """Classify u [B, input features] by the running statistics; nothing is trained.

        Returns:
          ``loss``, ``correct`` and ``logits`` as in ``step``, and ``predictions``, int64 [B].
        """
        self._step = None
        saturated = self.saturated
        _, _, s = self._forward(u)
        self.saturated = saturated
        logits, _ = self._logits(s)
        loss, correct, _ = self._softmax(logits, labels)
        return {"logits": logits, "loss": loss, "correct": correct, "predictions": logits.argmax(axis=1)}

    # Forward

    def _forward(self, u: NDArray[np.uint8]) -> tuple[dict[str, Any], list[dict[str, Any]], Ints]:
        stem = self._stem(u)
        s, units = stem["s"], []
        for unit in self.network.units:
            found = self._unit(unit, s)
            s = found["out"]
            units.append(found)
        return stem, units, s

    def _into_stream(self, value: Floats, limit: int, low: int | None = None) -> Ints:
        """Round to the stream's units, and keep within ``limit``."""
        self.saturated += int((value > limit).sum()) + (int((value < -limit).sum()) if low is None else 0)
        return np.rint(np.clip(value, _F(-limit if low is None else low), _F(limit))).astype(np.int64)

    def _stem(self, u: NDArray[np.uint8]) -> dict[str, Any]:
        stem, conv = self.network.stem, self.network.stem.conv
        x = (2 * u.astype(np.int64) - 255).reshape(len(u), *conv.in_map)
        weights, most = self.real[f"{conv.name}.weight"].value, _INPUT_MAX * conv.fan_in
        fixed = FixedPoint.of(weights, largest_input=_INPUT_MAX, most=most, bits=_STEM_BITS)
        y = convolve(x, fixed.weights, conv.stride, (conv.pad_height, conv.pad_width)) >> fixed.shift
        norm = self.norms[stem.norm.name]
        mean, mean_abs_dev = norm.moments(y.reshape(-1, conv.out_channels), fixed.exponent - fixed.shift, self._step)
        # Norm and relu are increasing functions of y: the pool may come before them.
        pooled, choice = max_pool(y, stem.pool) if stem.pool is not None else (y, None)
        limit = stream_limit(1 + len(self.network.stages[0]))
        value = scaled(pooled, mean, mean_abs_dev, norm.beta.value)
        low = 0 if stem.relu is not None else None
        inner = self._into_stream(value, limit if stem.second_norm is None else _STREAM_MAX, low)
        s = inner
        if stem.second_norm is not None:
            norm = self.norms[stem.second_norm.name]
            mean, mean_abs_dev = norm.moments(inner.reshape(-1, conv.out_channels), _STREAM_BITS, self._step)
            s = self._into_stream(scaled(inner, mean, mean_abs_dev, norm.beta.value), limit)
        return {"x": x, "fixed": fixed, "y": y, "choice": choice, "inner": inner, "s": s}

    def _unit(self, unit: Unit, s: Ints) -> dict[str, Any]:
        conv, limit = unit.conv, self.limits[unit.name]
        signs = np.where(self.weights[conv.name] < 0, -1, 1).reshape(conv.weight_shape)
        x = np.where(s < 0, -1, 1)
        y = convolve(x, signs, conv.stride, (conv.pad_height, conv.pad_width))
        found: dict[str, Any] = {"s": s, "x": x, "signs": signs, "y": y}
        out = s
        if unit.shortcut is not None:
            found |= self._shortcut(unit.shortcut, s)
            out = self._normalised(unit.shortcut.norm.name, found["shortcut_y"], found["exponent"], limit)
        return found | {"out": out + self._normalised(unit.norm.name, y, 0, limit)}

    def _normalised(self, name: str, y: Ints, exponent: int, limit: int) -> Ints:
        norm = self.norms[name]
        mean, mean_abs_dev = norm.moments(y.reshape(-1, y.shape[3]), exponent, self._step)
        return self._into_stream(scaled(y, mean, mean_abs_dev, norm.beta.value), limit)

    def _shortcut(self, shortcut: Shortcut, s: Ints) -> dict[str, Any]:
        conv = shortcut.conv
        pooled = average_pool(s, _window(shortcut))
        weights = self.real[f"{conv.name}.weight"].value
        most = max(127 * conv.out_channels, 256 * conv.in_channels)
        fixed = FixedPoint.of(weights, largest_input=_STREAM_MAX, most=most, bits=_SHORTCUT_BITS)
        y = convolve(pooled, fixed.weights, 1, (0, 0)) >> fixed.shift
        exponent = fixed.exponent + _STREAM_BITS - fixed.shift
        return {"pooled": pooled, "fixed": fixed, "shortcut_y": y, "exponent": exponent}

    def _logits(self, s: Ints) -> tuple[Floats, Floats]:
        """Mean of the stream over its map, and the dense layer on it: products in float32, added in order."""
        head = self.network.head
        positive = np.maximum(s, 0) if head.relu is not None else s
        unit = _F(1.0 / (STREAM_UNITS * head.pool.in_height * head.pool.in_width))
        features = positive.sum(axis=(1, 2)).astype(_F) * unit  # [B, C]
        weights, bias = (self.real[f"{head.dense.name}.{part}"].value for part in ("weight", "bias"))
        total = np.zeros((len(s), head.dense.out_features), _F)
        for c in range(head.dense.in_features):
            total = total + features[:, c : c + 1] * weights[:, c]
        return total + bias, features

    def _softmax(self, logits: Floats, labels: NDArray[np.int32]) -> tuple[float, int, Floats]:
        """Mean loss (nats), hits, and the gradient (p - target) / B [B, classes] in float32."""
        loss, correct, excess = cross_entropy(logits, labels)
        return loss, correct, (excess / len(logits)).astype(_F)

    # Backward

    def _head_backward(self, s: Ints, features: Floats, grad_logits: Floats) -> dict[str, Any]:
        """Train the dense layer, and give the gradient of the stream in 8 bits with its scale."""
        head, name = self.network.head, self.network.head.dense.name
        weights, bias = self.real[f"{name}.weight"], self.real[f"{name}.bias"]
        grad_features = np.zeros_like(features)
        for k in range(head.dense.out_features):
            grad_features = grad_features + grad_logits[:, k : k + 1] * weights.value[k]
        grad_weights, grad_bias = np.zeros_like(weights.value), np.zeros_like(bias.value)
        for b in range(len(s)):  # samples are added in order
            grad_weights = grad_weights + grad_logits[b][:, None] * features[b]
            grad_bias = grad_bias + grad_logits[b]
        value = grad_features * _F(1.0 / (head.pool.in_height * head.pool.in_width))
        value = np.broadcast_to(value[:, None, None, :], s.shape)
        if head.relu is not None:
            value = np.where(s > 0, value, _F(0))
        grad, scale = self._rounded(len(self.network.units) + 1, Purpose.GRAD_X, lambda g: value / g, self.head_scale)
        self._train(weights, grad_weights)
        self._train(bias, grad_bias)
        return {"grad_logits": grad_logits, "grad_weights": grad_weights, "grad": grad, "scale": scale}

    def _unit_backward(self, i: int, unit: Unit, f: dict[str, Any], grad: Ints, scale: np.float32) -> dict[str, Any]:
        """Train the unit, and give the gradient of the stream that entered it."""
        conv, s = unit.conv, f["s"]
        kernel, padding = (conv.kernel_height, conv.kernel_width), (conv.pad_height, conv.pad_width)
        grad_y, scale_y = self._norm_backward(i + 1, unit.norm.name, f["y"], grad, scale)
        grad_weights = weight_gradient(f["x"], grad_y, kernel, conv.stride, padding)
        grad_x = input_gradient(grad_y, f["signs"], s.shape[1:3], conv.stride, padding)
        if unit.sign.gradient == "clip":
            slope = np.where(np.abs(s) <= STREAM_UNITS, _F(1), _F(0))
        else:
            slope = np.maximum(STREAM_UNITS - np.abs(s), 0).astype(_F) * _F(2 / STREAM_UNITS)
        way, way_scale = grad, scale
        trace: dict[str, Any] = {}
        if unit.shortcut is not None:
            way, way_scale, trace = self._shortcut_backward(i + 1 + _SIDE, unit.shortcut, f, grad, scale)

        def value(unit_scale: np.float32) -> Floats:
            gain, way_gain = scale_y / unit_scale, way_scale / unit_scale
            result: Floats = way.astype(_F) * way_gain + grad_x.astype(_F) * gain * slope
            return result

        rounded, rounded_scale = self._rounded(i + 1, Purpose.GRAD_X, value, self.scales[unit.name])
        self._train_binary(i + 1, conv, grad_weights, scale_y)
        return trace | {
            "grad_in": grad,
            "grad_in_scale": scale,
            "s": s,
            "y": f["y"],
            "grad_y": grad_y,
            "grad_y_scale": scale_y,
            "grad_weights": grad_weights,
            "grad_x": rounded,
            "grad_x_scale": rounded_scale,
        }

    def _shortcut_backward(
        self, number: int, shortcut: Shortcut, f: dict[str, Any], grad: Ints, scale: np.float32
    ) -> tuple[Ints, np.float32, dict[str, Any]]:
        """Train the shortcut, and give the gradient that it passes down as integers with what one is worth."""
        window, fixed, name = _window(shortcut), f["fixed"], shortcut.conv.name
        grad_y, scale_y = self._norm_backward(number, shortcut.norm.name, f["shortcut_y"], grad, scale)
        grad_weights = weight_gradient(f["pooled"], grad_y, (1, 1), 1, (0, 0))
        grad_pooled = input_gradient(grad_y, fixed.weights, grad_y.shape[1:3], 1, (0, 0))
        self._train_real(name, grad_weights, scale_y, fixed)
        # A unit of `pooled` is 1/512 of the stream's 1, and the mean of a window's elements.
        worth = _F(np.ldexp(float(scale_y), _STREAM_BITS - fixed.shift) / (window[0] * window[1]))
        trace = {"shortcut_grad_y": grad_y, "shortcut_grad_y_scale": scale_y, "shortcut_grad_weights": grad_weights}
        trace |= {"shortcut_grad_x": grad_pooled, "shortcut_y": f["shortcut_y"], "exponent": f["exponent"]}
        return spread(grad_pooled, window, f["s"].shape[1:3]), worth, trace

    def _stem_backward(self, f: dict[str, Any], grad: Ints, scale: np.float32) -> dict[str, Any]:
        """Train the stem from the gradient of the stream that it made."""
        stem, conv = self.network.stem, self.network.stem.conv
        trace: dict[str, Any] = {"grad_in": grad, "grad_in_scale": scale}
        if stem.second_norm is not None:
            grad, scale = self._norm_backward(_SIDE, stem.second_norm.name, f["inner"], grad, scale)
            scale = scale * _F(STREAM_UNITS)
            trace |= {"grad_inner": grad, "grad_inner_scale": scale}
        if stem.relu is not None:
            grad = np.where(f["inner"] > 0, grad, 0)
        if stem.pool is not None:
            grad = unpool(grad, f["choice"], stem.pool)
            self.saturated += int((np.abs(grad) > 127).sum())
            grad = np.clip(grad, -127, 127)
        trace |= {"grad_norm": grad, "grad_norm_scale": scale}
        grad_y, scale_y = self._norm_backward(0, stem.norm.name, f["y"], grad, scale)
        kernel, padding = (conv.kernel_height, conv.kernel_width), (conv.pad_height, conv.pad_width)
        grad_weights = weight_gradient(f["x"], grad_y, kernel, conv.stride, padding)
        self._train_real(conv.name, grad_weights, scale_y, f["fixed"])
        return trace | {"grad_y": grad_y, "grad_y_scale": scale_y, "grad_weights": grad_weights}

    def _norm_backward(
        self, number: int, name: str, y: Ints, grad: Ints, scale_in: np.float32
    ) -> tuple[Ints, np.float32]:
        """Exact l1 gradient in 8 bits, of the shape of y, from ``grad`` of what leaves the norm; trains beta."""
        norm, o = self.norms[name], self.optimizer
        flat, q = y.reshape(-1, y.shape[3]), grad.reshape(-1, y.shape[3])
        c = channels_of(flat)
        alive = c.deviation > 0
        centred = centred_gradient(flat, q, c)
        real_gain = (float(scale_in) / np.where(alive, c.mean_abs_dev, 1.0)).astype(_F)
        norm.scale.measure((np.abs(centred).max(axis=0) * real_gain).max(), o)
        scale = norm.scale.unit(o)
        value = centred * (real_gain / scale)
        self.saturated += int((np.abs(value) > 127).sum())
        halves = random_halves(self._stream(number, Purpose.GRAD_Y), padded_index(flat.T.shape)).T
        rounded = np.where(alive, round_stochastic(value, halves), 0)
        norm.scale.see(np.abs(value).max() * scale, o)
        self._train(norm.beta, scale_in * q.sum(axis=0).astype(_F))
        return rounded.reshape(y.shape), scale

    def _rounded(
        self, number: int, purpose: Purpose, value: Callable[[np.float32], Floats], scale: Scale
    ) -> tuple[Ints, np.float32]:
        """Round to 8 bits what ``value`` gives in units of the scale; give it with the scale."""
        o = self.optimizer
        scale.measure(np.abs(value(_F(1))).max(), o)
        unit = scale.unit(o)
        v = value(unit)
        self.saturated += int((np.abs(v) > 127).sum())
        scale.see(np.abs(v).max() * unit, o)
        index = np.arange(v.size, dtype=np.int64).reshape(v.shape)
        return round_stochastic(v, random_halves(self._stream(number, purpose), index)), unit

    def _stream(self, number: int, purpose: Purpose) -> tuple[int, int]:
        return random_stream(self.seed, self.steps, number, purpose)

    def _train(self, parameter: Parameter, grad: Floats) -> None:
        parameter.update(grad, self.optimizer, self._step_scale, self.steps + 1)

    def _train_real(self, name: str, grad: Ints, scale_y: np.float32, fixed: FixedPoint) -> None:
        unit = np.ldexp(float(scale_y), fixed.exponent - fixed.shift)
        self._train(self.real[f"{name}.weight"], (grad.astype(np.float64) * unit).astype(_F))

    def _train_binary(self, number: int, conv: BinaryConv2d, grad: Ints, unit: np.float32) -> None:
        o, weights = self.optimizer, self.weights[conv.name]
        grad, gain = grad.reshape(weights.shape), unit
        if not self.is_float:
            gain = self.normalisers[conv.name].gain(grad, unit, o)
        stream = random_stream(self.seed, self.steps, number, Purpose.UPDATE)
        update_weights(o, weights, self.moments[conv.name], grad, gain, self._step_scale, self.steps + 1, stream)


def _window(shortcut: Shortcut) -> tuple[int, int]:
    return (shortcut.pool.pool_height, shortcut.pool.pool_width) if shortcut.pool is not None else (1, 1)

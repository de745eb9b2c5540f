"""The preset ``standard`` of residual networks in plain NumPy: Algorithm 1, bit for bit what the native engine gives.

Everything is float32; where the engine fixes an order of additions it is written out, as in ``reference.published``.
Letters: see ``bnncore.reference``; s is the stream, [B, H, W, C].

Source: Wang et al., arXiv:2102.04270, Algorithm 1; what a residual network has beside binary convolutions as in
native/include/bnncore/standard_residual_engine.h.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.layers import BinaryConv2d, Conv2d
from bnncore.optimizer import OptimizerConfig
from bnncore.reference.fixed_point import max_pool, spread, unpool
from bnncore.reference.maps import patches
from bnncore.reference.optimizers import Moments, adam
from bnncore.reference.parameters import Parameter
from bnncore.reference.published import add_patches, chain, sum_rows
from bnncore.reference.softmax import cross_entropy
from bnncore.residual import Shortcut, Unit
from bnncore.spec import ModelSpec
from bnncore.state import State

__all__ = ["PublishedResidualReference"]

Floats = NDArray[Any]
"""float32."""

_F = np.float32


class _Norm:
    """An l2 batch norm of y [B, P, Q, N] with beta alone, and what it keeps for its backward pass."""

    def __init__(self, name: str, state: State) -> None:
        self.beta = Parameter(state[f"{name}.beta"])
        self.mean: Floats = state[f"{name}.mean"].copy()
        self.mean_abs_dev: Floats = state[f"{name}.mean_abs_dev"].copy()  # here a standard deviation
        self.beta_gradient: Floats = np.zeros_like(self.mean)

    def forward(self, y: Floats, step: int | None) -> Floats:
        """Normalise; by the running statistics where ``step`` is None, which follow otherwise."""
        rows = y.reshape(-1, y.shape[3])
        mean, deviation = self.mean, self.mean_abs_dev
        if step is not None:
            exact = sum_rows(rows) / len(rows)
            mean, deviation = exact.astype(_F), np.sqrt(sum_rows((rows - exact) ** 2) / len(rows)).astype(_F)
            keep = _F(1) - _F(1) / _F(min(step + 1, 10))
            self.mean = keep * self.mean + (_F(1) - keep) * mean
            self.mean_abs_dev = keep * self.mean_abs_dev + (_F(1) - keep) * deviation
        self.inverse = np.divide(_F(1), deviation, out=np.zeros_like(deviation), where=deviation > 0)
        self.x = (rows - mean) * self.inverse + self.beta.value
        return self.x.reshape(y.shape)

    def backward(self, grad: Floats) -> Floats:
        """Give v - mean(v) - x mean(v x), with v = grad / psi and x without beta."""
        rows, x = grad.reshape(-1, grad.shape[3]), self.x - self.beta.value
        inverse = self.inverse.astype(np.float64)
        total, products = sum_rows(rows), sum_rows(rows.astype(np.float64) * x)
        self.beta_gradient = total.astype(_F)
        mean_v = (total * inverse / len(rows)).astype(_F)
        slope = (products * inverse / len(rows)).astype(_F)
        grad_y: Floats = (rows * self.inverse - mean_v) - x * slope
        return grad_y.reshape(grad.shape)


class PublishedResidualReference:
    """Mirrors ``bnncore.engine.Engine`` under ``standard``, step for step.

    Args:
      spec: a residual network.
      optimizer: adam or sgd.
      state: to start from, weights in float32, with running statistics.

    Attributes:
      weights: latent weights float32 [N, K] by binary layer.
      real: real-valued weights and biases by their name in a state.
      norms: batch norms by name: ``beta.value``, ``mean``, ``mean_abs_dev``, ``beta_gradient``.
      gradients: of the last step, by the name of a weight or bias, in its shape.
    """

    def __init__(self, spec: ModelSpec, optimizer: OptimizerConfig, state: State) -> None:
        assert spec.residual is not None
        self.network, self.optimizer, self.steps = spec.residual, optimizer, 0
        self.norms = {norm.name: _Norm(norm.name, state) for norm in self.network.norms}
        self.weights = {
            unit.conv.name: state[f"{unit.conv.name}.weight"].reshape(unit.conv.out_channels, -1).copy()
            for unit in self.network.units
        }
        self.moments = {name: Moments(np.zeros_like(w), np.zeros_like(w)) for name, w in self.weights.items()}
        self.real = {t.name: Parameter(state[t.name]) for t in spec.tensors if t.role in ("real_weight", "bias")}
        self.gradients: dict[str, Floats] = {}
        self._step: int | None = None

    def step(self, u: NDArray[np.uint8], labels: NDArray[np.int32], step_scale: float = 1.0) -> tuple[float, int]:
        """Train on u [B, input features] and labels [B]; give the mean loss and the hits."""
        self._step = self.steps
        streams = self._forward(u)
        logits, features = self._logits(streams[-1])
        loss, correct, excess = cross_entropy(logits, labels)
        grad = self._head_backward(streams[-1], features, (excess * (1.0 / len(u))).astype(_F))
        for i, unit in reversed(list(enumerate(self.network.units))):
            grad = self._unit_backward(unit, streams[i], grad)
        self._stem_backward(u, grad)
        self._update(step_scale)
        self.steps += 1
        return loss, correct

    def evaluate(self, u: NDArray[np.uint8], labels: NDArray[np.int32]) -> tuple[float, int, NDArray[np.int64]]:
        """Classify u [B, input features] by the running statistics: the mean loss, hits and predictions [B]."""
        self._step = None
        logits, _ = self._logits(self._forward(u)[-1])
        loss, correct, _ = cross_entropy(logits, labels)
        return loss, correct, logits.argmax(axis=1)

    # Forward

    def _forward(self, u: NDArray[np.uint8]) -> list[Floats]:
        """Give the stream in front of each unit and behind the last."""
        streams = [self._stem(u)]
        for unit in self.network.units:
            s = streams[-1]
            x = self._norm(unit.norm.name, self._multiply(unit.conv, _signs(s), self._signs(unit)))
            streams.append((self._shortcut(unit.shortcut, s) if unit.shortcut is not None else s) + x)
        return streams

    def _stem(self, u: NDArray[np.uint8]) -> Floats:
        stem = self.network.stem
        x = self._norm(stem.norm.name, self._multiply(stem.conv, self._pixels(u), self._real(stem.conv)))
        self._stem_x = x
        if stem.relu is not None:
            x = np.where(x < 0, _F(0), x)
        if stem.pool is not None:
            x, self._choice = max_pool(x, stem.pool)
        return self._norm(stem.second_norm.name, x) if stem.second_norm is not None else x

    def _shortcut(self, shortcut: Shortcut, s: Floats) -> Floats:
        return self._norm(
            shortcut.norm.name, self._multiply(shortcut.conv, _average(s, _window(shortcut)), self._real(shortcut.conv))
        )

    def _logits(self, s: Floats) -> tuple[Floats, Floats]:
        head = self.network.head
        rows = (np.where(s < 0, _F(0), s) if head.relu is not None else s).reshape(len(s), -1, s.shape[3])
        features = (sum_rows(rows.transpose(1, 0, 2)) / rows.shape[1]).astype(_F)
        weights, bias = (self.real[f"{head.dense.name}.{part}"].value for part in ("weight", "bias"))
        return chain(features, weights.T) + bias, features

    def _pixels(self, u: NDArray[np.uint8]) -> Floats:
        return (2 * u.astype(np.int64) - 255).astype(_F).reshape(len(u), *self.network.stem.conv.in_map)

    def _norm(self, name: str, y: Floats) -> Floats:
        return self.norms[name].forward(y, self._step)

    def _signs(self, unit: Unit) -> Floats:
        return _signs(self.weights[unit.conv.name])

    def _real(self, conv: Conv2d) -> Floats:
        return self.real[f"{conv.name}.weight"].value.reshape(conv.out_channels, -1)

    @staticmethod
    def _multiply(conv: BinaryConv2d | Conv2d, x: Floats, weights: Floats) -> Floats:
        return chain(_patches(conv, x), weights.T).reshape(len(x), *conv.out_map)

    # Backward

    def _head_backward(self, s: Floats, features: Floats, grad_logits: Floats) -> Floats:
        head, name = self.network.head, self.network.head.dense.name
        self.gradients[f"{name}.weight"] = chain(grad_logits.T, features)
        self.gradients[f"{name}.bias"] = sum_rows(grad_logits).astype(_F)
        grad = chain(grad_logits, self.real[f"{name}.weight"].value) / _F(head.pool.in_height * head.pool.in_width)
        grad = np.broadcast_to(grad[:, None, None, :], s.shape)
        return np.where(s > 0, grad, _F(0)) if head.relu is not None else grad

    def _unit_backward(self, unit: Unit, s: Floats, grad: Floats) -> Floats:
        """Find a unit's gradients; give that of the stream that it read."""
        grad_y = self.norms[unit.norm.name].backward(grad)
        grad_x = self._convolution_backward(unit.conv, _signs(s), self._signs(unit), grad_y)
        way = grad
        if unit.shortcut is not None:
            window, conv = _window(unit.shortcut), unit.shortcut.conv
            grad_y = self.norms[unit.shortcut.norm.name].backward(grad)
            pooled = self._convolution_backward(conv, _average(s, window), self._real(conv), grad_y)
            way = spread(pooled / _F(window[0] * window[1]), window, (s.shape[1], s.shape[2]))
        if unit.sign.gradient == "clip":
            slope = np.where(np.abs(s) <= 1, _F(1), _F(0))
        else:
            slope = np.maximum(_F(2) - _F(2) * np.abs(s), _F(0))
        grad_s: Floats = way + slope * grad_x
        return grad_s

    def _convolution_backward(self, conv: BinaryConv2d | Conv2d, x: Floats, weights: Floats, grad_y: Floats) -> Floats:
        """Keep the gradient of the weights [N, K]; give that of x [B, H, W, C]."""
        rows = grad_y.reshape(-1, conv.out_channels)
        self.gradients[f"{conv.name}.weight"] = chain(rows.T, _patches(conv, x)).reshape(conv.weight_shape)
        kernel, padding = (conv.kernel_height, conv.kernel_width), (conv.pad_height, conv.pad_width)
        parts = chain(rows, weights).reshape(len(x), -1, weights.shape[1])
        return add_patches(parts, conv.in_map, kernel, conv.stride, padding, conv.out_map[1])

    def _stem_backward(self, u: NDArray[np.uint8], grad: Floats) -> None:
        stem, conv = self.network.stem, self.network.stem.conv
        if stem.second_norm is not None:
            grad = self.norms[stem.second_norm.name].backward(grad)
        if stem.pool is not None:
            grad = unpool(grad, self._choice, stem.pool)
        if stem.relu is not None:
            grad = np.where(self._stem_x > 0, grad, _F(0))
        rows = self.norms[stem.norm.name].backward(grad).reshape(-1, conv.out_channels)
        gradient = chain(rows.T, _patches(conv, self._pixels(u)))
        self.gradients[f"{conv.name}.weight"] = gradient.reshape(conv.weight_shape)

    def _update(self, step_scale: float) -> None:
        o, step = self.optimizer, self.steps + 1
        size = _F(o.step_size) * _F(step_scale)
        for name, w in self.weights.items():
            m, g = self.moments[name], self.gradients[f"{name}.weight"].reshape(w.shape)
            if o.name == "adam":
                adam(o, w, m.first, m.second, g, size, step)
            else:
                m.first[...] = _F(o.momentum) * m.first + g * np.sqrt(_F(w.size))
                w -= size * m.first
            np.clip(w, -1, 1, out=w)
        for name, parameter in self.real.items():
            parameter.update(self.gradients[name], o, step_scale, step)
        for norm in self.norms.values():
            norm.beta.update(norm.beta_gradient, o, step_scale, step)


def _signs(x: Floats) -> Floats:
    return np.where(x < 0, _F(-1), _F(1))


def _window(shortcut: Shortcut) -> tuple[int, int]:
    return (shortcut.pool.pool_height, shortcut.pool.pool_width) if shortcut.pool is not None else (1, 1)


def _patches(conv: BinaryConv2d | Conv2d, x: Floats) -> Floats:
    """Give what the outputs of a convolution read, [B P Q, K]."""
    read = patches(x, (conv.kernel_height, conv.kernel_width), conv.stride, (conv.pad_height, conv.pad_width))
    return read.reshape(len(x) * conv.out_map[0] * conv.out_map[1], -1)


def _average(s: Floats, window: tuple[int, int]) -> Floats:
    """Give the mean of each window of s [B, H, W, C], its elements added row by row."""
    (height, width), (batch, rows, columns, channels) = window, s.shape
    total = np.zeros((batch, rows // height, columns // width, channels), _F)
    for i, j in np.ndindex(height, width):
        total += s[:, i : rows // height * height : height, j : columns // width * width : width]
    return total / _F(height * width)

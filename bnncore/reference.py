"""The training step in plain NumPy, written to be read: what the native engine must compute, bit for bit.

Nothing is packed, tiled or recomputed here, and every array has its shape beside it. Integers are int64, so that no
sum can overflow; where the engine rounds in float32 this does too, in the same order. It is slow and takes the memory
that the engine saves; its only uses are to be compared with and to be understood.

Letters: B = batch size, N = outputs (channels) of a block, K = its inputs (fan-in).

Source: Wang et al., "Enabling Binary Neural Network Training on the Edge", arXiv:2102.04270, Algorithm 2, with three
deviations: the l1 batch-norm gradient is the exact derivative, the straight-through mask |x| <= 1 is applied, and
gradients are 8-bit integers with stochastic rounding instead of float16 and signs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.optimizer import OptimizerConfig
from bnncore.spec import ModelSpec
from bnncore.state import State

__all__ = ["ReferenceEngine", "exp", "l1_batch_norm", "l1_batch_norm_gradient", "log", "random_stream", "random_words"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

PURPOSE_INITIALISE, PURPOSE_TOP, PURPOSE_GRAD_Y, PURPOSE_GRAD_X, PURPOSE_UPDATE = 1, 2, 3, 4, 5
_MASK64 = (1 << 64) - 1
_F = np.float32


# Randomness: a function of (seed, step, block, purpose, index).


def _split_mix64(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def random_stream(seed: int, step: int, block: int, purpose: int) -> tuple[int, int]:
    """Give the two 32-bit halves of the key of one stream."""
    key = _split_mix64(_split_mix64(_split_mix64(seed) ^ step) ^ (block << 8 | purpose))
    return key & 0xFFFFFFFF, key >> 32


def random_words(stream: tuple[int, int], index: Ints) -> NDArray[np.uint32]:
    """Give words ``index`` of a stream, uint32 of the same shape."""
    x = index.astype(np.uint32) ^ np.uint32(stream[0])
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x21F0AAAD)
    x += np.uint32(stream[1])
    x ^= x >> np.uint32(15)
    x *= np.uint32(0xD35A2D97)
    x ^= x >> np.uint32(15)
    return x


def round_stochastic(x: NDArray[np.float32], random16: NDArray[np.uint32]) -> Ints:
    """Round to an integer in [-127, 127]: floor(x + r / 65536) in 16.16 fixed point, r uniform in [0, 65535]."""
    fixed = (np.clip(x, _F(-127), _F(127)) * _F(65536)).astype(np.int64)
    return (fixed + random16.astype(np.int64)) >> 16


# exp and log without libm.


def exp(x: Floats) -> Floats:
    """e^x for x <= 700, from additions and multiplications in one order (native/include/bnncore/real_math.h)."""
    rounder = 6755399441055744.0  # 1.5 * 2^52
    n = (x * 1.4426950408889634 + rounder) - rounder
    r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10
    total = np.ones_like(x)
    for i in range(14, 0, -1):
        total = 1.0 + r / i * total
    scale = ((n.astype(np.int64) + 1023) << 52).view(np.float64)
    return np.where(x < -700.0, 0.0, total * scale)


def log(x: Floats) -> Floats:
    """Natural logarithm of positive normal numbers, likewise."""
    bits = x.view(np.int64)
    exponent = (bits >> 52) - 1023
    mantissa = ((bits & 0x000FFFFFFFFFFFFF) | 0x3FF0000000000000).view(np.float64)
    big = mantissa > 1.4142135623730951
    mantissa = np.where(big, mantissa * 0.5, mantissa)
    exponent = exponent + big
    s = (mantissa - 1.0) / (mantissa + 1.0)
    total = np.zeros_like(x)
    for i in range(23, 0, -2):
        total = total * (s * s) + 1.0 / i
    return exponent * 0.6931471805599453 + 2.0 * s * total


# l1 batch norm.


def l1_batch_norm(y: Floats, beta: Floats) -> tuple[Floats, Floats, Floats]:
    """Normalise ``y`` [B, N] by its mean and mean absolute deviation: x = (y - mu) / psi + beta.

    Returns:
      x [B, N], mu [N], psi [N]. A channel with psi = 0 gives x = beta.
    """
    mu = y.mean(axis=0)
    psi = np.abs(y - mu).mean(axis=0)
    x = np.divide(y - mu, psi, out=np.zeros_like(y), where=psi > 0) + beta
    return x, mu, psi


def l1_batch_norm_gradient(y: Floats, grad_x: Floats) -> Floats:
    """Give dL/dy [B, N] from dL/dx [B, N]: the exact derivative of ``l1_batch_norm``.

    With v = grad_x / psi, x0 = (y - mu) / psi and s = sgn(y - mu):
    grad_y = v - mean(v) - (s - mean(s)) * mean(v * x0).
    """
    x0, mu, psi = l1_batch_norm(y, np.zeros(y.shape[1]))
    v = np.divide(grad_x, psi, out=np.zeros_like(grad_x), where=psi > 0)
    s = np.sign(y - mu)
    gradient: Floats = v - v.mean(axis=0) - (s - s.mean(axis=0)) * (v * x0).mean(axis=0)
    return gradient


@dataclass
class _Channels:
    """Integer statistics of y [B, N] and the thresholds that follow from them, each [N]."""

    total: Ints  # S = sum of y
    deviation: Ints  # D = sum |B y - S|, so psi = D / B^2
    mean: Floats
    mean_abs_dev: Floats
    sign_from: Ints
    mask_from: Ints
    mask_to: Ints


def _channels(y: Ints, beta: NDArray[np.float32], *, is_last: bool) -> _Channels:
    batch = y.shape[0]
    total = y.sum(axis=0)
    deviation = np.abs(batch * y - total).sum(axis=0)
    mean, psi = total / batch, deviation / (float(batch) * batch)
    b = beta.astype(np.float64)
    dead = deviation == 0
    lowest, highest = np.iinfo(np.int32).min, np.iinfo(np.int32).max
    inside = np.abs(b) <= 1
    sign_from = np.where(dead, np.where(b >= 0, lowest, highest), np.ceil(mean - b * psi))
    mask_from = np.where(dead, np.where(inside, lowest, highest), np.ceil(mean - (1.0 + b) * psi))
    mask_to = np.where(dead, np.where(inside, highest, lowest), np.floor(mean + (1.0 - b) * psi))
    if is_last:  # softmax follows, not a sign: every sample passes
        mask_from, mask_to = np.full_like(mean, lowest), np.full_like(mean, highest)
    return _Channels(
        total, deviation, mean, psi, sign_from.astype(np.int64), mask_from.astype(np.int64), mask_to.astype(np.int64)
    )


@dataclass
class _Scales:
    """Delayed scales of one block; zero means not measured yet."""

    max_grad_y: np.float32 = field(default_factory=lambda: _F(0))
    max_grad_x: np.float32 = field(default_factory=lambda: _F(0))
    normaliser_sum: float = 0.0
    normaliser_count: int = 0


class ReferenceEngine:
    """Mirrors ``bnncore.engine.Engine`` step for step.

    Args:
      spec: the network.
      optimizer: its constants.
      state: parameters to start from (int8 weights, or float32 under adam), with running statistics.
      seed: what the engine was given.
    """

    def __init__(self, spec: ModelSpec, optimizer: OptimizerConfig, state: State, seed: int) -> None:
        self.spec = spec
        self.optimizer = optimizer
        self.seed = seed
        self.steps = 0
        blocks = spec.blocks
        self.weights: list[NDArray[Any]] = [state[f"{b.linear}.weight"].copy() for b in blocks]  # [N, K]
        if optimizer.name != "adam":
            self.weights = [w.astype(np.int64) for w in self.weights]
        float_state = optimizer.name == "adam"
        self.first: list[NDArray[Any]] = [np.zeros(w.shape, _F if float_state else np.int64) for w in self.weights]
        self.second = [np.zeros(w.shape, _F) for w in self.weights]
        self.beta = [state[f"{b.norm}.beta"].copy() for b in blocks]  # [N]
        self.beta_first = [np.zeros_like(b) for b in self.beta]
        self.beta_second = [np.zeros_like(b) for b in self.beta]
        self.mean = [state[f"{b.norm}.mean"].copy() for b in blocks]
        self.mean_abs_dev = [state[f"{b.norm}.mean_abs_dev"].copy() for b in blocks]
        self.scales = [_Scales() for _ in blocks]

    def step(self, u: NDArray[np.uint8], labels: NDArray[np.int32], step_scale: float = 1.0) -> dict[str, Any]:
        """Train on u [B, K0] and labels [B]; give every intermediate, named and shaped as the engine's trace."""
        batch = u.shape[0]
        signs: list[Ints] = []  # binary weights [N, K] in +-1
        inputs: list[Ints] = []  # what each block reads [B, K]: 2u - 255, then +-1
        trace: list[dict[str, Any]] = []
        y: Ints
        channels: list[_Channels] = []
        x: Ints = 2 * u.astype(np.int64) - 255
        for i in range(len(self.weights)):
            inputs.append(x)
            signs.append(np.where(self.weights[i] < 0, -1, 1))
            y = x @ signs[i].T  # [B, N]
            c = _channels(y, self.beta[i], is_last=i == len(self.weights) - 1)
            self._update_statistics(i, c)
            channels.append(c)
            trace.append(
                {
                    "y": y.T,
                    "sums": np.stack([c.total, c.deviation], axis=1),
                    "thresholds": np.stack([c.sign_from, c.mask_from, c.mask_to], axis=1),
                }
            )
            x = np.where(y >= c.sign_from, 1, -1)
        c = channels[-1]
        inverse = np.divide(1.0, c.mean_abs_dev, out=np.zeros_like(c.mean_abs_dev), where=c.mean_abs_dev > 0)
        logits = ((y - c.mean) * inverse + self.beta[-1].astype(np.float64)).astype(_F)  # [B, classes]
        loss, correct, grad = self._softmax(logits, labels)

        scale_in = _F(1) / (_F(127) * _F(batch))
        for i in range(len(self.weights) - 1, -1, -1):
            y = trace[i]["y"].T
            trace[i]["grad_in"], trace[i]["grad_in_scale"] = grad, scale_in
            grad_y, scale_y, grad_beta, seen_y = self._norm_gradient(i, y, channels[i], grad, scale_in)
            trace[i]["grad_y"], trace[i]["grad_y_scale"] = grad_y, scale_y
            grad_weights = grad_y.T @ inputs[i]  # [N, K]
            trace[i]["grad_weights"] = grad_weights
            self._update(i, grad_weights, scale_y, step_scale)
            self._update_beta(i, grad_beta, step_scale)
            if i > 0:
                grad_x = grad_y @ signs[i]  # [B, K]
                trace[i]["grad_x"] = grad_x
                grad, scale_in = self._round_grad_x(i, grad_x, scale_y)
            scales = self.scales[i]
            scales.max_grad_y = max(seen_y, scales.max_grad_y * _F(self.optimizer.scale_decay))
        self.steps += 1
        return {"blocks": trace, "logits": logits, "loss": loss, "correct": correct}

    def _softmax(self, logits: NDArray[np.float32], labels: NDArray[np.int32]) -> tuple[float, int, Ints]:
        """Mean loss (nats), hits, and the gradient p - target [B, classes] rounded to 1/127."""
        z = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        e = exp(z)
        total = np.zeros(len(z))
        for k in range(z.shape[1]):  # classes are added in order
            total = total + e[:, k]
        rows = np.arange(len(z))
        loss = np.floor((log(total) - z[rows, labels]) * 2.0**32).sum() / 2.0**32 / len(z)
        p = e * (1.0 / total)[:, None]
        p[rows, labels] -= 1.0
        index = np.arange(z.size, dtype=np.int64).reshape(z.shape)
        words = random_words(self._stream(len(self.weights) - 1, PURPOSE_TOP), index)
        grad = round_stochastic((p * 127.0).astype(_F), words >> np.uint32(16))
        return float(loss), int((logits.argmax(axis=1) == labels).sum()), grad

    def _norm_gradient(
        self, i: int, y: Ints, c: _Channels, grad: Ints, scale_in: np.float32
    ) -> tuple[Ints, np.float32, NDArray[np.float32], np.float32]:
        """Mask |x| <= 1, exact l1 gradient, 8 bits: grad_y [B, N], its scale, grad_beta [N], largest |grad_y|."""
        batch, width = y.shape
        q = np.where((y >= c.mask_from) & (y <= c.mask_to), grad, 0)
        alive = c.deviation > 0
        side = np.sign(batch * y - c.total)  # [B, N]
        mean_q = q.sum(axis=0) / batch
        moment = (batch * (q * y).sum(axis=0) - c.total * q.sum(axis=0)).astype(np.float64)
        psi = np.where(alive, c.mean_abs_dev, 1.0)
        mean_qx = moment / (float(batch) * batch * psi)
        mean_side = ((side > 0).sum(axis=0).astype(np.float64) - (side < 0).sum(axis=0)) / batch
        offset = np.where(
            side > 0,
            mean_q + (1.0 - mean_side) * mean_qx,
            np.where(side < 0, mean_q + (-1.0 - mean_side) * mean_qx, mean_q - mean_side * mean_qx),
        ).astype(_F)
        centred = np.where(alive, q.astype(_F) - offset, _F(0))
        real_gain = (float(scale_in) / psi).astype(_F)  # [N]
        scales = self.scales[i]
        if scales.max_grad_y == 0:
            scales.max_grad_y = (np.abs(centred).max(axis=0) * real_gain).max() / _F(self.optimizer.headroom)
        scale_y = self._scale(scales.max_grad_y)
        value = centred * (real_gain / scale_y)
        index = np.arange(batch * width, dtype=np.int64).reshape(batch, width)
        words = random_words(self._stream(i, PURPOSE_GRAD_Y), index)
        grad_y = np.where(alive, round_stochastic(value, words >> np.uint32(16)), 0)
        return grad_y, scale_y, scale_in * q.sum(axis=0).astype(_F), np.abs(value).max() * scale_y

    def _round_grad_x(self, i: int, grad_x: Ints, scale_y: np.float32) -> tuple[Ints, np.float32]:
        """Round grad_x [B, K] to 8 bits; give it with its scale."""
        scales = self.scales[i]
        if scales.max_grad_x == 0:
            scales.max_grad_x = _F(np.abs(grad_x).max()) * scale_y / _F(self.optimizer.headroom)
        scale_x = self._scale(scales.max_grad_x)
        gain = scale_y / scale_x
        value = grad_x.astype(_F) * gain
        index = np.arange(grad_x.size, dtype=np.int64).reshape(grad_x.shape)
        words = random_words(self._stream(i, PURPOSE_GRAD_X), index)
        seen = np.abs(value).max() / gain * scale_y
        scales.max_grad_x = max(seen, scales.max_grad_x * _F(self.optimizer.scale_decay))
        return round_stochastic(value, words >> np.uint32(16)), scale_x

    def _scale(self, largest: np.float32) -> np.float32:
        return largest * (_F(self.optimizer.headroom) / _F(127)) if largest > 0 else _F(1)

    def _stream(self, block: int, purpose: int) -> tuple[int, int]:
        return random_stream(self.seed, self.steps, block, purpose)

    def _update_statistics(self, i: int, c: _Channels) -> None:
        keep = _F(1) - _F(1) / _F(min(self.steps + 1, 10))
        self.mean[i] = keep * self.mean[i] + (_F(1) - keep) * c.mean.astype(_F)
        self.mean_abs_dev[i] = keep * self.mean_abs_dev[i] + (_F(1) - keep) * c.mean_abs_dev.astype(_F)

    def _update(self, i: int, grad: Ints, scale_y: np.float32, step_scale: float) -> None:
        """Fold the integer weight gradient [N, K] into latent weights and moments."""
        o, scales = self.optimizer, self.scales[i]
        step = _F(o.step_size) * _F(step_scale)
        g = grad.astype(_F)
        if o.name == "adam":
            self._adam(self.weights[i], self.first[i], self.second[i], g * scale_y, step)
            np.clip(self.weights[i], _F(-1), _F(1), out=self.weights[i])
            return
        measured = float(scale_y) * float(np.abs(grad).sum()) / grad.size
        if scales.normaliser_count == 0:  # the first step is measured before it is used
            scales.normaliser_sum, scales.normaliser_count = measured, 1
            measured = 0.0
        mean_abs = scales.normaliser_sum / scales.normaliser_count
        gain = _F(float(scale_y) / mean_abs) if mean_abs > 0 else _F(0)
        index = np.arange(grad.size, dtype=np.int64).reshape(grad.shape)
        words = random_words(self._stream(i, PURPOSE_UPDATE), index)
        low, high = words & np.uint32(0xFFFF), words >> np.uint32(16)
        u, m = self.weights[i], self.first[i]
        if o.name == "latent8":
            u[...] = round_stochastic(u.astype(_F) - g * (gain * (step * _F(127))), high)
        elif o.name == "latent8m":
            inflow = (_F(1) - _F(o.momentum)) * _F(o.momentum_unit)
            m[...] = round_stochastic(m.astype(_F) * _F(o.momentum) + g * (gain * inflow), low)
            u[...] = round_stochastic(u.astype(_F) - m.astype(_F) * (step * _F(127) / _F(o.momentum_unit)), high)
        else:  # bop
            gamma = _F(o.gamma) * _F(step_scale)
            inflow = gamma * _F(127) / _F(o.range)
            m[...] = round_stochastic(m.astype(_F) * (_F(1) - gamma) + g * (gain * inflow), high)
            along = np.where(u < 0, -m, m).astype(_F)
            u[...] = np.where(along > _F(o.threshold) * _F(127) / _F(o.range), -u, u)
        if measured > 0 and scales.normaliser_count < o.normaliser_steps:
            scales.normaliser_sum += measured
            scales.normaliser_count += 1

    def _update_beta(self, i: int, grad: NDArray[np.float32], step_scale: float) -> None:
        step = _F(self.optimizer.beta_step_size) * _F(step_scale)
        self._adam(self.beta[i], self.beta_first[i], self.beta_second[i], grad, step)

    def _adam(self, value: Any, first: Any, second: Any, grad: Any, step: np.float32) -> None:
        o = self.optimizer
        b1, b2 = _F(o.beta1), _F(o.beta2)
        power1 = power2 = 1.0
        for _ in range(self.steps + 1):
            power1 *= float(b1)
            power2 *= float(b2)
        first[...] = b1 * first + (_F(1) - b1) * grad
        second[...] = b2 * second + (_F(1) - b2) * (grad * grad)
        size, inverse = _F(float(step) / (1.0 - power1)), _F(1.0 / (1.0 - power2))
        value[...] = value - size * first / (np.sqrt(second * inverse) + _F(o.epsilon))

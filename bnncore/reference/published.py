"""The presets ``standard`` and ``paper`` in plain NumPy: Algorithms 1 and 2, bit for bit what the native engines give.

Everything is float32 here; where the engines fix an order of additions it is written out, as a loop or as an
accumulation along one axis. Letters: see ``bnncore.reference``.

Source: Wang et al., arXiv:2102.04270, Algorithms 1 and 2; the choices that the article leaves open are listed in
native/include/bnncore/standard_engine.h and paper_engine.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.blocks import Block
from bnncore.optimizer import OptimizerConfig
from bnncore.reference.maps import max_pool, patches, route_to_arg_max
from bnncore.reference.optimizers import Moments, adam
from bnncore.reference.randomness import Purpose, random_stream, random_words
from bnncore.reference.real_math import exp, log
from bnncore.spec import ModelSpec
from bnncore.state import State

__all__ = ["PublishedReference", "add_patches", "chain", "round_half_stochastic", "sum_rows"]

Floats = NDArray[Any]
"""float32, or float64 where sums are taken."""

_F = np.float32
_LARGEST_HALF = _F(65504)
_TILE, _MOST_COLUMNS, _ROWS = 192 * 128, 128, 48  # tiles of patches that are added to the input's gradient one by one


def chain(a: Floats, b: Floats) -> Floats:
    """Give a [M, K] @ b [K, N] as one chain of fused multiply-adds in float32 an element, in ascending order of k.

    A product of two float32 is exact in float64; so is, but for ties that do not occur here, what the sum is rounded
    from.
    """
    total = np.zeros((len(a), b.shape[1]), _F)
    for k in range(a.shape[1]):
        total = (total + a[:, k, None].astype(np.float64) * b[k].astype(np.float64)).astype(_F)
    return total


def round_half(x: Floats) -> Floats:
    """Round to float16 and back, saturating."""
    return np.clip(x, -_LARGEST_HALF, _LARGEST_HALF).astype(np.float16).astype(_F)


def round_half_stochastic(x: Floats, random: NDArray[np.uint32]) -> Floats:
    """Round float32 to float16 and back: away from zero with the probability of the fraction that is cut off.

    Args:
      x: finite.
      random: uniform in [0, 2^13), as wide as x.
    """
    size = np.minimum(np.abs(x), _LARGEST_HALF)
    tiny = ((size * _F(2.0**37)).astype(np.int64) + random) >> 13
    normal = (size.view(np.uint32).astype(np.int64) - 0x38000000 + random) >> 13
    bits = np.where(size < _F(2.0**-14), tiny, normal) | np.where(np.signbit(x), 0x8000, 0)
    return bits.astype(np.uint16).view(np.float16).astype(_F)


def sum_rows(values: Floats) -> Floats:
    """Sum over the first axis in ascending order, in float64."""
    total: Floats = np.add.accumulate(values.astype(np.float64), axis=0)[-1]
    return total


def add_patches(
    parts: Floats,
    in_map: tuple[int, int, int],
    kernel: tuple[int, int],
    stride: int,
    padding: tuple[int, int],
    out_width: int,
) -> Floats:
    """Add up the gradients of a convolution's patches tile by tile, position by position.

    Args:
      parts: float32 [B, P x Q, K].
      in_map: height, width and channels of what is read.
      kernel: height and width.
      stride: of both axes.
      padding: above and left.
      out_width: Q.

    Returns:
      float32 [B, height, width, channels].
    """
    (height, width, channels), fan_in = in_map, parts.shape[2]
    maps = np.zeros((len(parts), *in_map), _F)
    positions, columns = parts.shape[1], min(_MOST_COLUMNS, -(-fan_in // 16) * 16)
    rows = _TILE // columns // _ROWS * _ROWS
    for first_row in range(0, positions, rows):
        for first_column in range(0, fan_in, columns):
            for position in range(first_row, min(first_row + rows, positions)):
                k, end = first_column, min(first_column + columns, fan_in)
                while k < end:
                    tap, channel = divmod(k, channels)
                    count = min(channels - channel, end - k)
                    y = position // out_width * stride - padding[0] + tap // kernel[1]
                    x = position % out_width * stride - padding[1] + tap % kernel[1]
                    if 0 <= y < height and 0 <= x < width:
                        maps[:, y, x, channel : channel + count] += parts[:, position, k : k + count]
                    k += count
    return maps


@dataclass
class _Kept:
    """What a block keeps for its backward pass."""

    patches: Floats  # what the products read, [B x products, K]
    x: Floats  # normalised, with beta, [J, N]; the engine of ``paper`` keeps its sign and whether it lies in [-1, 1]
    inverse: Floats  # 1 / psi, or 0, [N]
    omega: Floats  # mean |x|, [N]
    choice: NDArray[np.int64] | None  # arg-max of the pool


class PublishedReference:
    """Mirrors ``bnncore.engine.Engine`` under ``standard`` or ``paper``, step for step.

    Args:
      spec: the network.
      preset: ``standard`` or ``paper``.
      optimizer: adam or sgd.
      state: to start from, weights in float32, with running statistics.
      seed: what the engine was given.

    Attributes:
      weights: float32 [N, K] of each block; gradients: the same, of the last step.
      beta, mean, deviation, beta_gradients: float32 [N] of each block.
    """

    def __init__(self, spec: ModelSpec, preset: str, optimizer: OptimizerConfig, state: State, seed: int) -> None:
        self.blocks, self.optimizer, self.seed = spec.blocks, optimizer, seed
        self.is_paper = preset == "paper"
        self.steps = 0
        self.weights = [state[f"{b.linear}.weight"].reshape(b.out_channels, b.fan_in).copy() for b in self.blocks]
        self.beta = [state[f"{b.norm}.beta"].copy() for b in self.blocks]
        self.mean = [state[f"{b.norm}.mean"].copy() for b in self.blocks]
        self.deviation = [state[f"{b.norm}.mean_abs_dev"].copy() for b in self.blocks]
        self.moments = [Moments(np.zeros_like(w), np.zeros_like(w)) for w in self.weights]
        self.beta_moments = [Moments(np.zeros_like(b), np.zeros_like(b)) for b in self.beta]
        self.gradients: list[Floats] = [np.zeros_like(w) for w in self.weights]
        self.beta_gradients: list[Floats] = [np.zeros_like(b) for b in self.beta]

    def step(self, u: NDArray[np.uint8], labels: NDArray[np.int32], step_scale: float = 1.0) -> tuple[float, int]:
        """Train on u [B, input features] and labels [B]; give the mean loss and the hits."""
        kept: list[_Kept] = []
        x = (2 * u.astype(np.int64) - 255).astype(_F)
        if self.is_paper:
            x = x * (_F(1) / _F(255))
        for i, block in enumerate(self.blocks):
            maps = x.reshape(len(u), block.in_height, block.in_width, block.in_channels)
            k, x = self._forward(i, maps)
            kept.append(k)
        loss, correct, grad = self._softmax(kept[-1].x, labels)
        for i in reversed(range(len(self.blocks))):
            grad = self._backward(i, kept[i], grad, len(u))
        for i in range(len(self.blocks)):
            self._update(i, step_scale)
        self.steps += 1
        return loss, correct

    def _stored(self, x: Floats) -> Floats:
        return round_half(x) if self.is_paper else x

    def _forward(self, i: int, maps: Floats) -> tuple[_Kept, Floats]:
        """Give what block i keeps, and the signs that leave it [B, ...], from what it reads."""
        block, batch = self.blocks[i], len(maps)
        kernel = (block.kernel_height, block.kernel_width)
        read = patches(maps, kernel, block.stride, (block.pad_height, block.pad_width)).reshape(-1, block.fan_in)
        y = self._stored(chain(read, self._signs(i).T))
        shape, window = (batch, block.conv_height, block.conv_width, -1), (block.pool_height, block.pool_width)
        choice = None
        if block.pool == "before_norm":
            pooled, choice = max_pool(y.reshape(shape), window)
            y = pooled.reshape(-1, block.out_channels)
        mean = sum_rows(y) / len(y)
        if self.is_paper:
            deviation = (sum_rows(np.abs(y - mean)) / len(y)).astype(_F)
        else:
            deviation = np.sqrt(sum_rows((y - mean) ** 2) / len(y)).astype(_F)
        inverse = np.divide(_F(1), deviation, out=np.zeros_like(deviation), where=deviation > 0)
        x = (y - mean.astype(_F)) * inverse + self.beta[i]
        self._update_statistics(i, mean.astype(_F), deviation)
        omega = (sum_rows(np.abs(x)) / len(x)).astype(_F)
        signs = np.where(x < 0, _F(-1), _F(1))
        if block.pool == "after_sign":
            signs, choice = max_pool(signs.reshape(shape), window)
        return _Kept(read, x, inverse, omega, choice), signs.reshape(batch, -1)

    def _signs(self, i: int) -> Floats:
        return np.where(self.weights[i] < 0, _F(-1), _F(1))

    def _update_statistics(self, i: int, mean: Floats, deviation: Floats) -> None:
        keep = _F(1) - _F(1) / _F(min(self.steps + 1, 10))
        unit = _F(255) if self.is_paper and i == 0 else _F(1)
        self.mean[i] = keep * self.mean[i] + (_F(1) - keep) * (mean * unit)
        self.deviation[i] = keep * self.deviation[i] + (_F(1) - keep) * (deviation * unit)

    def _softmax(self, logits: Floats, labels: NDArray[np.int32]) -> tuple[float, int, Floats]:
        z = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        e = exp(z)
        total = np.add.accumulate(e, axis=1)[:, -1]
        rows = np.arange(len(z))
        loss = np.floor((log(total) - z[rows, labels]) * 2.0**32).sum() / 2.0**32 / len(z)
        p = e * (1.0 / total)[:, None]
        p[rows, labels] -= 1.0
        grad = (p * (1.0 if self.is_paper else 1.0 / len(z))).astype(_F)
        return float(loss), int((logits.argmax(axis=1) == labels).sum()), self._stored(grad)

    def _backward(self, i: int, kept: _Kept, grad: Floats, batch: int) -> Floats:
        """Find the gradients of block i from that of what leaves it; give that of what it reads, [B, features]."""
        block = self.blocks[i]
        if block.pool == "after_sign":
            grad = self._unpool(block, kept, grad)
        grad = self._norm_gradient(i, kept, grad.reshape(kept.x.shape), batch)
        if block.pool == "before_norm":
            grad = self._unpool(block, kept, grad)
        self.gradients[i] = chain(grad.T, kept.patches)
        if self.is_paper:
            self.gradients[i] = np.where(self.gradients[i] < 0, _F(-1), _F(1))
        return np.zeros(0, _F) if block.is_first else self._stored(self._input_gradient(i, grad, batch))

    def _unpool(self, block: Block, kept: _Kept, grad: Floats) -> Floats:
        assert kept.choice is not None
        products, window = (block.conv_height, block.conv_width), (block.pool_height, block.pool_width)
        routed = route_to_arg_max(grad.reshape(kept.choice.shape), kept.choice, products, window)
        return routed.reshape(-1, block.out_channels)

    def _norm_gradient(self, i: int, kept: _Kept, grad: Floats, batch: int) -> Floats:
        """Give v - mean(v) - x0 mean(v x0), x0 = x - beta; for ``paper`` x0 = sgn(x), times omega in the mean."""
        is_last = i == len(self.blocks) - 1
        passed = grad if is_last else np.where(np.abs(kept.x) <= 1, grad, _F(0))
        x0 = np.where(kept.x < 0, _F(-1), _F(1)) if self.is_paper else kept.x - self.beta[i]
        rows, inverse = len(grad), kept.inverse.astype(np.float64)
        total, products = sum_rows(passed), sum_rows(passed.astype(np.float64) * x0)
        self.beta_gradients[i] = (total / batch if self.is_paper else total).astype(_F)
        mean_v = (total * inverse / rows).astype(_F)
        omega = kept.omega.astype(np.float64) if self.is_paper else 1.0
        slope = (products * inverse * omega / rows).astype(_F)
        return self._stored((passed * kept.inverse - mean_v) - x0 * slope)

    def _input_gradient(self, i: int, grad: Floats, batch: int) -> Floats:
        block = self.blocks[i]
        parts = chain(grad, self._signs(i)).reshape(batch, -1, block.fan_in)
        kernel, padding = (block.kernel_height, block.kernel_width), (block.pad_height, block.pad_width)
        in_map = (block.in_height, block.in_width, block.in_channels)
        return add_patches(parts, in_map, kernel, block.stride, padding, block.conv_width).reshape(batch, -1)

    def _update(self, i: int, step_scale: float) -> None:
        o, w, m, g = self.optimizer, self.weights[i], self.moments[i], self.gradients[i]
        size = _F(o.step_size) * _F(step_scale)
        if o.name == "adam":
            adam(o, w, m.first, m.second, g, size, self.steps + 1)
        else:
            root = np.sqrt(_F(w.size))
            unit = _F(1) / root if self.is_paper else root
            m.first[...] = _F(o.momentum) * m.first + g * unit
            w -= size * m.first
        np.clip(w, -1, 1, out=w)
        if self.is_paper:
            stream = random_stream(self.seed, self.steps, i, Purpose.UPDATE)
            words = random_words(stream, np.arange(w.size, dtype=np.int64).reshape(w.shape))
            w[...] = round_half_stochastic(w, words & np.uint32(0x1FFF))
            m.first[...] = round_half_stochastic(m.first, words >> np.uint32(13) & np.uint32(0x1FFF))
            m.second[...] = round_half_stochastic(m.second, words * np.uint32(0x9E3779B1) >> np.uint32(19))
        b, size = self.beta_moments[i], _F(o.beta_step_size) * _F(step_scale)
        adam(o, self.beta[i], b.first, b.second, self.beta_gradients[i], size, self.steps + 1)

"""ReferenceEngine: the training step, from the input to the new weights (letters: see ``bnncore.reference``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.blocks import Block
from bnncore.optimizer import FLOAT_OPTIMIZERS, OptimizerConfig
from bnncore.reference.maps import convolve, input_gradient, max_pool, route_to_arg_max, weight_gradient
from bnncore.reference.norm import centred_gradient, channel_thresholds, channels_of
from bnncore.reference.optimizers import Moments, Normaliser, adam, update_weights
from bnncore.reference.randomness import Purpose, padded_index, random_halves, random_stream, round_stochastic
from bnncore.reference.softmax import cross_entropy
from bnncore.spec import ModelSpec
from bnncore.state import State

__all__ = ["ReferenceEngine"]

Ints = NDArray[np.int64]

_F = np.float32


@dataclass
class _Scales:
    """Delayed scales of one block; zero means not measured yet."""

    max_grad_y: np.float32 = field(default_factory=lambda: _F(0))
    max_grad_x: np.float32 = field(default_factory=lambda: _F(0))
    normaliser: Normaliser = field(default_factory=Normaliser)


@dataclass
class _Forward:
    """What the backward pass of a block needs of its forward pass."""

    x: Ints  # what it reads [B, H, W, C]: 2u - 255 in the first block, then +-1
    signs: Ints  # binary weights [N, kernel height, kernel width, C] in +-1
    y: Ints  # what is normalised [J, N]: the products, or their pools
    choice: Ints | None  # arg-max of the pool, if there is one


class ReferenceEngine:
    """Mirrors ``bnncore.engine.Engine`` step for step.

    Args:
      spec: the network.
      optimizer: its constants.
      state: parameters to start from (int8 weights, or float32 under adam and sgd), with running statistics.
      seed: what the engine was given.

    Attributes:
      weights: latent weights of each block, [N, K].
      beta, mean, mean_abs_dev: float32 [N], of each block.
    """

    def __init__(self, spec: ModelSpec, optimizer: OptimizerConfig, state: State, seed: int) -> None:
        self.spec = spec
        self.blocks = spec.blocks
        self.optimizer = optimizer
        self.seed = seed
        self.steps = 0
        self.is_float = optimizer.name in FLOAT_OPTIMIZERS
        dtype = _F if self.is_float else np.int64
        self.weights: list[NDArray[Any]] = [
            state[f"{b.linear}.weight"].astype(dtype).reshape(b.out_channels, b.fan_in) for b in self.blocks
        ]
        self.moments = [Moments(np.zeros(w.shape, dtype), np.zeros(w.shape, dtype)) for w in self.weights]
        self.beta = [state[f"{b.norm}.beta"].copy() for b in self.blocks]
        self.beta_moments = [Moments(np.zeros_like(b), np.zeros_like(b)) for b in self.beta]
        self.mean = [state[f"{b.norm}.mean"].copy() for b in self.blocks]
        self.mean_abs_dev = [state[f"{b.norm}.mean_abs_dev"].copy() for b in self.blocks]
        self.scales = [_Scales() for _ in self.blocks]

    def step(self, u: NDArray[np.uint8], labels: NDArray[np.int32], step_scale: float = 1.0) -> dict[str, Any]:
        """Train on u [B, input features] and labels [B].

        Returns:
          ``loss`` (mean, nats), ``correct`` (hits), ``logits`` [B, classes], and for each of ``blocks`` every
          intermediate, named and shaped as in native/include/bnncore/trace.h.
        """
        batch = len(u)
        trace: list[dict[str, Any]] = []
        forward: list[_Forward] = []
        x = self._input(u)
        for i, block in enumerate(self.blocks):
            f = self._products(i, x)
            c = channels_of(f.y)
            self._update_statistics(i, c.mean, c.mean_abs_dev)
            thresholds = channel_thresholds(c.mean, c.mean_abs_dev, self.beta[i], is_last=block.is_last)
            sums = np.stack([c.total, c.deviation], axis=1)
            trace.append({"y": f.y.T, "sums": sums, "thresholds": np.stack(thresholds, axis=1)})
            if block.is_last:
                logits = self._logits(i, f.y, c.mean, c.mean_abs_dev)
            else:
                x, f.choice = self._signs(block, f, thresholds[0])
            forward.append(f)
        loss, correct, grad = self._softmax(logits, labels)

        scale_in = _F(1) / (_F(127) * _F(batch))
        for i, block in reversed(list(enumerate(self.blocks))):
            f, t = forward[i], trace[i]
            t["grad_in"], t["grad_in_scale"] = grad, scale_in
            if block.pool == "after_sign":
                grad = self._unpool(block, f, grad)
            grad_norm, scale_y, grad_beta, seen_y = self._norm_gradient(i, f.y, grad, scale_in)
            grad_y = self._unpool(block, f, grad_norm) if block.pool == "before_norm" else grad_norm
            t["grad_y"], t["grad_y_scale"] = grad_y, scale_y
            grad_y = grad_y.reshape(batch, block.conv_height, block.conv_width, block.out_channels)
            kernel, padding = (block.kernel_height, block.kernel_width), (block.pad_height, block.pad_width)
            grad_weights = weight_gradient(f.x, grad_y, kernel, block.stride, padding)
            shift = _weight_gradient_shift(grad_y) if block.is_first else 0
            t["grad_weights"] = grad_weights.reshape(self.weights[i].shape) >> shift
            self._update(i, t["grad_weights"], np.ldexp(scale_y, shift), step_scale)
            self._update_beta(i, grad_beta, step_scale)
            if not block.is_first:
                grad_x = input_gradient(grad_y, f.signs, f.x.shape[1:3], block.stride, padding)
                t["grad_x"] = grad_x.reshape(-1, block.in_channels)
                grad, scale_in = self._round_grad_x(i, t["grad_x"], scale_y)
            scales = self.scales[i]
            scales.max_grad_y = max(seen_y, scales.max_grad_y * _F(self.optimizer.scale_decay))
        self.steps += 1
        return {"blocks": trace, "logits": logits, "loss": loss, "correct": correct}

    def evaluate(self, u: NDArray[np.uint8], labels: NDArray[np.int32]) -> dict[str, Any]:
        """Classify u [B, input features] by the running statistics; nothing is trained.

        Returns:
          ``loss``, ``correct`` and ``logits`` as in ``step``, and ``predictions``, int64 [B].
        """
        x = self._input(u)
        for i, block in enumerate(self.blocks):
            f = self._products(i, x)
            mean, mean_abs_dev = self.mean[i].astype(np.float64), self.mean_abs_dev[i].astype(np.float64)
            if block.is_last:
                logits = self._logits(i, f.y, mean, mean_abs_dev)
            else:
                sign_from, _, _ = channel_thresholds(mean, mean_abs_dev, self.beta[i], is_last=False)
                x, _ = self._signs(block, f, sign_from)
        loss, correct, _ = self._softmax(logits, labels)
        return {"logits": logits, "loss": loss, "correct": correct, "predictions": logits.argmax(axis=1)}

    def _input(self, u: NDArray[np.uint8]) -> Ints:
        block = self.blocks[0]
        return (2 * u.astype(np.int64) - 255).reshape(len(u), block.in_height, block.in_width, block.in_channels)

    def _products(self, i: int, x: Ints) -> _Forward:
        """Multiply x [B, H, W, C] with the block's binary weights, and pool if that comes before the norm."""
        block = self.blocks[i]
        shape = (block.out_channels, block.kernel_height, block.kernel_width, block.in_channels)
        signs = np.where(self.weights[i] < 0, -1, 1).reshape(shape)
        x = x.reshape(len(x), block.in_height, block.in_width, block.in_channels)
        y, choice = convolve(x, signs, block.stride, (block.pad_height, block.pad_width)), None
        if block.pool == "before_norm":
            y, choice = max_pool(y, (block.pool_height, block.pool_width))
        return _Forward(x, signs, y.reshape(-1, block.out_channels), choice)

    def _signs(self, block: Block, f: _Forward, sign_from: Ints) -> tuple[Ints, Ints | None]:
        """Give the map +-1 [B, H, W, N] that leaves the block, and the arg-max of its pool, wherever that is."""
        x = np.where(f.y >= sign_from, 1, -1).reshape(-1, block.norm_height, block.norm_width, block.out_channels)
        return max_pool(x, (block.pool_height, block.pool_width)) if block.pool == "after_sign" else (x, f.choice)

    def _unpool(self, block: Block, f: _Forward, grad: Ints) -> Ints:
        """Route a gradient of pooled values [B x pooled, N] to where each came from: [B x products, N]."""
        assert f.choice is not None
        products, window = (block.conv_height, block.conv_width), (block.pool_height, block.pool_width)
        return route_to_arg_max(grad.reshape(f.choice.shape), f.choice, products, window).reshape(-1, grad.shape[1])

    def _logits(self, i: int, y: Ints, mean: NDArray[Any], mean_abs_dev: NDArray[Any]) -> NDArray[np.float32]:
        inverse = np.divide(1.0, mean_abs_dev, out=np.zeros_like(mean_abs_dev), where=mean_abs_dev > 0)
        logits: NDArray[np.float32] = ((y - mean) * inverse + self.beta[i].astype(np.float64)).astype(_F)
        return logits  # [B, classes]

    def _softmax(self, logits: NDArray[np.float32], labels: NDArray[np.int32]) -> tuple[float, int, Ints]:
        """Mean loss (nats), hits, and the gradient p - target [B, classes] rounded to 1/127."""
        loss, correct, excess = cross_entropy(logits, labels)
        halves = self._halves(len(self.blocks) - 1, Purpose.TOP_GRADIENT, excess.shape)
        return loss, correct, round_stochastic((excess * 127.0).astype(_F), halves)

    def _norm_gradient(
        self, i: int, y: Ints, grad: Ints, scale_in: np.float32
    ) -> tuple[Ints, np.float32, NDArray[np.float32], np.float32]:
        """Mask |x| <= 1, exact l1 gradient, 8 bits: grad_y [J, N], its scale, grad_beta [N], largest |grad_y|."""
        c = channels_of(y)
        _, mask_from, mask_to = channel_thresholds(c.mean, c.mean_abs_dev, self.beta[i], is_last=self.blocks[i].is_last)
        q = np.where((y >= mask_from) & (y <= mask_to), grad, 0)
        alive = c.deviation > 0
        centred = centred_gradient(y, q, c)
        real_gain = (float(scale_in) / np.where(alive, c.mean_abs_dev, 1.0)).astype(_F)  # [N]
        scales = self.scales[i]
        if scales.max_grad_y == 0:  # the first step is measured before it is used
            scales.max_grad_y = (np.abs(centred).max(axis=0) * real_gain).max() / _F(self.optimizer.headroom)
        scale_y = self._scale(scales.max_grad_y)
        value = centred * (real_gain / scale_y)
        halves = random_halves(self._stream(i, Purpose.GRAD_Y), padded_index(y.T.shape)).T
        grad_y = np.where(alive, round_stochastic(value, halves), 0)
        return grad_y, scale_y, scale_in * q.sum(axis=0).astype(_F), np.abs(value).max() * scale_y

    def _round_grad_x(self, i: int, grad_x: Ints, scale_y: np.float32) -> tuple[Ints, np.float32]:
        """Round grad_x [B x pixels, C] to 8 bits; give it with its scale."""
        scales = self.scales[i]
        if scales.max_grad_x == 0:
            scales.max_grad_x = _F(np.abs(grad_x).max()) * scale_y / _F(self.optimizer.headroom)
        scale_x = self._scale(scales.max_grad_x)
        gain = scale_y / scale_x
        value = grad_x.astype(_F) * gain
        halves = self._halves(i, Purpose.GRAD_X, grad_x.shape)
        seen = np.abs(value).max() / gain * scale_y
        scales.max_grad_x = max(seen, scales.max_grad_x * _F(self.optimizer.scale_decay))
        return round_stochastic(value, halves), scale_x

    def _scale(self, largest: np.float32) -> np.float32:
        return largest * (_F(self.optimizer.headroom) / _F(127)) if largest > 0 else _F(1)

    def _stream(self, block: int, purpose: Purpose) -> tuple[int, int]:
        return random_stream(self.seed, self.steps, block, purpose)

    def _halves(self, block: int, purpose: Purpose, shape: tuple[int, ...]) -> NDArray[np.uint32]:
        """Give 16 random bits for each element of the flattened array, for one use in this step."""
        index = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
        return random_halves(self._stream(block, purpose), index)

    def _update_statistics(self, i: int, mean: NDArray[Any], mean_abs_dev: NDArray[Any]) -> None:
        keep = _F(1) - _F(1) / _F(min(self.steps + 1, 10))
        self.mean[i] = keep * self.mean[i] + (_F(1) - keep) * mean.astype(_F)
        self.mean_abs_dev[i] = keep * self.mean_abs_dev[i] + (_F(1) - keep) * mean_abs_dev.astype(_F)

    def _update(self, i: int, grad: Ints, unit: np.float32, step_scale: float) -> None:
        """Fold the integer weight gradient [N, K], a unit of which is worth ``unit``, into the layer's state."""
        o, gain = self.optimizer, unit
        if not self.is_float:
            gain = self.scales[i].normaliser.gain(grad, unit, o)
        stream = random_stream(self.seed, self.steps, i, Purpose.UPDATE)
        update_weights(o, self.weights[i], self.moments[i], grad, gain, step_scale, self.steps + 1, stream)

    def _update_beta(self, i: int, grad: NDArray[np.float32], step_scale: float) -> None:
        o, m = self.optimizer, self.beta_moments[i]
        adam(o, self.beta[i], m.first, m.second, grad, _F(o.beta_step_size) * _F(step_scale), self.steps + 1)


def _weight_gradient_shift(grad_y: Ints) -> int:
    """Halvings after which any weight gradient of a first block fits an int32, by the shape of grad_y [B, P, Q, N]."""
    largest = 127 * 255 * int(np.prod(grad_y.shape[:3]))
    return max(0, largest.bit_length() - 31)

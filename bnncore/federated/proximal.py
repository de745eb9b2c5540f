"""FedProx on the device: every local step ends with a pull of the latent weights back to the model of the task.

``w <- w - rate (w - w0)``, the step that the gradient of ``mu / 2 |w - w0|^2`` makes: rate = mu * step size of the
optimizer * the round's step scale, at most 1. The pull follows the optimizer's own step instead of entering its
gradient, so it bypasses momenta and normalisers (decoupled, as weight decay is in AdamW).

A latent weight of 8 bits cannot hold a pull of less than 1/127: it moves by whole units, rounded stochastically, so the
pull is right on average and never goes past w0. Randomness is a function of (seed, step, tensor, index).
Source: Li et al., "Federated Optimization in Heterogeneous Networks" (2020), equation 2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bnncore.engine import Engine
from bnncore.errors import TaskFailedError
from bnncore.seeds import derive_seed

__all__ = ["ProximalPull"]

_RATE_BITS = 16
_BLOCK = 1 << 16


class ProximalPull:
    """Pulls an engine's latent weights to where they are now.

    Args:
      engine: has loaded the task's model.
      mu: strength of the pull, above 0.
      seed: of the rounding.

    Raises:
      TaskFailedError: the optimizer keeps no latent weights that could be pulled.

    Memory: a copy of the latent weights, and one block of 64 Ki elements.
    """

    def __init__(self, engine: Engine, mu: float, seed: int) -> None:
        self._seed = seed
        self._strength = mu * engine.preset.optimizer.step_size
        state, arena = engine.state(copy=False), engine.arena
        names = [tensor.name for tensor in engine.spec.tensors if tensor.role == "weight"]
        self._weights = {name: state[name].reshape(-1) for name in names}
        if not all(np.shares_memory(array, arena) for array in self._weights.values()):
            optimizer, preset = engine.preset.optimizer.name, engine.preset.name
            raise TaskFailedError(
                f"the pull of strategy fedprox needs latent weights; optimizer {optimizer!r} under preset {preset!r} "
                "keeps none that can be moved. Take latent8"
            )
        self._start = {name: array.copy() for name, array in self._weights.items()}

    def pull(self, step: int, step_scale: float) -> None:
        """Pull once, after local step ``step``."""
        rate = min(1.0, max(0.0, self._strength * step_scale))
        for name, weights in self._weights.items():
            start = self._start[name]
            draws = np.random.Philox(key=derive_seed(self._seed, "proximal", step, name))
            for begin in range(0, weights.size, _BLOCK):
                block = slice(begin, min(begin + _BLOCK, weights.size))
                if weights.dtype == np.int8:
                    weights[block] -= _whole_pull(weights[block], start[block], rate, draws)
                else:
                    weights[block] -= np.float32(rate) * (weights[block] - start[block])


def _whole_pull(
    weights: NDArray[np.int8], start: NDArray[np.int8], rate: float, draws: np.random.Philox
) -> NDArray[np.int8]:
    """Round ``rate * (weights - start)`` to whole units, up with the probability of its fraction."""
    raw = draws.random_raw(_BLOCK // 4).astype("<u8").view("<u2")[: weights.size]
    difference = weights.astype(np.int32) - start
    pull: NDArray[np.int32] = difference * round(rate * (1 << _RATE_BITS)) + raw
    return (pull >> _RATE_BITS).astype(np.int8)

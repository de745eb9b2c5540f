"""Evaluation of a trained network in the memory that evaluation takes: one bit a weight and two layers' signs.

Nothing of training is laid out: no latent weights, no optimizer state, no gradients. The results have the same bits as
``Engine.evaluate_batch`` on the same state.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bnncore import _native
from bnncore.engine import isa_selected
from bnncore.evaluator import Evaluator
from bnncore.optimizer import OPTIMIZERS
from bnncore.plan import check_threads, native_blocks, native_params
from bnncore.residual_plan import load_residual_tensors, native_network
from bnncore.spec import ModelSpec
from bnncore.state import State, validate_state

__all__ = ["Predictor"]

_FROZEN = replace(OPTIMIZERS["latent8"], name="frozen")
"""The native side's name for bits without any optimizer state."""


class Predictor(Evaluator):
    """Classifies samples with a trained network.

    Args:
      spec: the network.
      state: its tensors, running statistics included; only the signs of binary weights are kept.
      batch_size: most samples at once.
      threads: threads of a batch, the calling one included; they never change a result.

    Raises:
      ShapeError, PayloadError: the state is not one of this network, or has no statistics.
      BudgetError, ConfigurationError, SpecError: a size is out of range.

    Attributes:
      input: uint8 [batch_size, input_features], a view of the arena: write samples here. Read as x = 2u - 255.
      labels: int32 [batch_size], likewise; each in [0, classes).
    """

    _kind = "predictor"

    def __init__(self, spec: ModelSpec, state: State, *, batch_size: int = 100, threads: int = 1) -> None:
        validate_state(spec, state, statistics=True)
        isa_selected()  # a wrong BITFLEET_ISA is told before anything is laid out
        params = native_params(_FROZEN)
        if spec.residual is not None:
            check_threads(batch_size, threads)
            network = native_network(spec, batch_size=batch_size)
            super().__init__(spec, _native.ResidualEngine(network, params, batch_size, threads), batch_size)
            load_residual_tensors(spec, self._native, self.plan.entries, state)
            return
        blocks = native_blocks(spec, batch_size=batch_size, threads=threads)
        super().__init__(spec, _native.Engine(blocks, params, batch_size, threads), batch_size)
        for i, block in enumerate(spec.blocks):
            weights = state[f"{block.linear}.weight"]
            self._native.write_weights(i, np.ascontiguousarray(weights).reshape(block.out_channels, block.fan_in))
            beta, mean, mean_abs_dev = self._native.norm(i)
            beta[:] = state[f"{block.norm}.beta"]
            mean[:] = state[f"{block.norm}.mean"]
            mean_abs_dev[:] = state[f"{block.norm}.mean_abs_dev"]

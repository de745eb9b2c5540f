"""Updating weights during the backward pass, so that their gradients never exist all at once.

A float32 gradient of every weight is as large as the weights. Nothing needs them together: as soon as the gradient of
a parameter is there, the optimizer can take it and let go of it. What then remains of a step's memory is the weights,
the optimizer's state, and the gradient of the largest layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["update_in_backward"]


def update_in_backward(optimizer: Any) -> Callable[[], None]:
    """Have ``loss.backward()`` update each parameter as soon as its gradient is there, and free the gradient.

    Leave ``optimizer.step()`` and ``optimizer.zero_grad()`` out of the loop then; schedules go on as usual. Not for
    gradients that are clipped together, scaled, accumulated over several batches, or averaged over processes, nor for
    parameters that several layers share.

    Args:
      optimizer: any of ``torch.optim`` that treats parameters one by one; best with ``fused=True``, since its other
        ways take copies.

    Returns:
      A function that undoes it.
    """

    def update(parameter: Any) -> None:
        optimizer.step()  # which passes over parameters without a gradient
        parameter.grad = None

    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    handles = [parameter.register_post_accumulate_grad_hook(update) for parameter in parameters]

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo

"""How the step size changes while a network is trained: schedules by name.

A schedule is asked before each step for the factor of the optimizer's step size, and told each epoch's training loss;
it never learns of the test set. A new one is a class here and a row in ``SCHEDULES``. Standard library alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from bnncore.errors import OptimizerError

__all__ = ["SCHEDULES", "Constant", "Cosine", "Linear", "Plateau", "Schedule", "build_schedule"]

DEFAULT_PATIENCE = 3


class Schedule(Protocol):
    """The step size over one run of training."""

    def scale(self, done: int, total: int) -> float:
        """Give the factor, in [0, 1], of the next step's size.

        Args:
          done: steps done, in [0, total).
          total: steps of the whole run.
        """
        ...

    def end_epoch(self, loss: float) -> None:
        """Take note of an epoch's mean training loss, nats."""
        ...

    def memory(self) -> list[float]:
        """What it has noted, for a run that stops and goes on."""
        ...

    def recall(self, memory: list[float]) -> None:
        """Go on from what ``memory`` gave."""
        ...


class _Memoryless:
    def end_epoch(self, loss: float) -> None:
        pass

    def memory(self) -> list[float]:
        return []

    def recall(self, memory: list[float]) -> None:
        pass


class Linear(_Memoryless):
    """Falls in equal steps from 1 to 1 / total at the last step."""

    def scale(self, done: int, total: int) -> float:
        """See ``Schedule``."""
        return 1.0 - done / total


class Constant(_Memoryless):
    """Stays at 1."""

    def scale(self, done: int, total: int) -> float:
        """See ``Schedule``."""
        return 1.0


class Cosine(_Memoryless):
    """Falls from 1 to almost 0 as (1 + cos(pi done / total)) / 2: slowly at first and last."""

    def scale(self, done: int, total: int) -> float:
        """See ``Schedule``."""
        if 2 * done == total:
            return 0.5
        if 2 * done > total:
            return 1.0 - self.scale(total - done, total)
        # The sum of the cosine's series, not the C library's cosine: that one's last bit differs between machines, and
        # with it the weights would.
        angle = 3.141592653589793 * done / total
        square = angle * angle
        term = cosine = 1.0
        for n in range(1, 12):  # up to pi / 2 the twelfth term is below 2**-64
            term *= -square / ((2 * n - 1) * (2 * n))
            cosine += term
        return 0.5 + 0.5 * cosine


class Plateau:
    """Starts at 1 and halves after some epochs in which the training loss found no new low.

    Args:
      patience: how many epochs in a row; counted anew after each halving.

    Raises:
      OptimizerError: patience is below 1.
    """

    def __init__(self, patience: int = DEFAULT_PATIENCE) -> None:
        if patience < 1:
            raise OptimizerError(f"patience must be at least 1 epoch, got {patience}")
        self._patience = patience
        self._scale = 1.0
        self._lowest = float("inf")
        self._waited = 0

    def scale(self, done: int, total: int) -> float:
        """See ``Schedule``."""
        return self._scale

    def end_epoch(self, loss: float) -> None:
        """See ``Schedule``."""
        self._waited = 0 if loss < self._lowest else self._waited + 1
        self._lowest = min(self._lowest, loss)
        if self._waited == self._patience:
            self._scale /= 2
            self._waited = 0

    def memory(self) -> list[float]:
        """See ``Schedule``."""
        return [self._scale, self._lowest, self._waited]

    def recall(self, memory: list[float]) -> None:
        """See ``Schedule``."""
        self._scale, self._lowest, self._waited = memory[0], memory[1], int(memory[2])


SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "constant": Constant,
    "cosine": Cosine,
    "linear": Linear,
    "plateau": Plateau,
}
"""What starts a schedule, by its name."""


def build_schedule(name: str, *, patience: int | None = None) -> Schedule:
    """Start a schedule; each run of training needs its own.

    Args:
      name: a key of ``SCHEDULES``.
      patience: epochs without a new low before ``plateau`` halves; None: 3.

    Raises:
      OptimizerError: the name is unknown, or patience is below 1 or given to another schedule.
    """
    if name not in SCHEDULES:
        raise OptimizerError(f"schedule must be one of {sorted(SCHEDULES)}, got {name!r}")
    if patience is None:
        return SCHEDULES[name]()
    if name != "plateau":
        raise OptimizerError(f"patience belongs to the schedule 'plateau', got it with {name!r}. Leave it out")
    return Plateau(patience)

"""How a device gets to a model with the fewest bytes. Needs nothing but the standard library: the agent loads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Way", "way_to_model"]


@dataclass(frozen=True)
class Way:
    """Where to begin, and which steps to take from there.

    Attributes:
      base: digest of a model that the device holds; None: the model that the job's seed makes.
      first_step: index of the first step to take; the number of steps when there is none to take.
    """

    base: str | None
    first_step: int


def way_to_model(
    model: str, step_bases: Sequence[str], holds: Callable[[str], object], *, from_seed: bool
) -> Way | None:
    """Choose between the cache, steps from an older model and the job's seed.

    Args:
      model: digest of the wanted model.
      step_bases: of the newest steps to it, oldest first: the digest of the model that each starts from.
      holds: tells whether the device holds a model.
      from_seed: whether the steps, or the model itself where there are none, begin at the one that the seed makes.

    Returns:
      The way with the fewest steps; None: the model has to be downloaded whole.
    """
    if holds(model):
        return Way(model, len(step_bases))
    for first in range(len(step_bases) - 1, -1, -1):
        if holds(step_bases[first]):
            return Way(step_bases[first], first)
    return Way(None, 0) if from_seed else None

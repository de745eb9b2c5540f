"""How an update is told as whole numbers, read out of what a child is told of its task."""

from __future__ import annotations

from typing import Any

from bnncore.federated import SummedUpdates
from bnncore.secure.privacy import Privacy

__all__ = ["summed_of"]


def summed_of(told: dict[str, Any] | None) -> SummedUpdates | None:
    """Read what ``task_file.told_sum`` wrote.

    Raises:
      ConfigurationError: its privacy makes no sense.
    """
    if told is None:
        return None
    privacy = None if told["privacy"] is None else Privacy(**told["privacy"])
    return SummedUpdates(told["weights"], told["clip"], bytes.fromhex(told["scales"]), privacy)

"""What TensorBoard is told of rounds: each value once, when it is known."""

from __future__ import annotations

from collections.abc import Sequence

from bnncore.tensorboard import EventWriter
from server.simulate.report import RoundResult

TAGS = {
    "accuracy": "accuracy/evaluation",
    "local_accuracy": "accuracy/devices",
    "loss": "loss/evaluation",
    "training_loss": "loss/training",
    "down_bytes": "traffic/bytes down",
    "up_bytes": "traffic/bytes up",
    "updates": "traffic/updates",
    "seconds": "time/seconds",
}
"""By attribute of a round's result."""


class RoundScalars:
    """Writes rounds to an event file, with the round's number as the step."""

    def __init__(self, writer: EventWriter) -> None:
        self._writer = writer
        self._written: set[tuple[int, str]] = set()

    def __call__(self, rounds: Sequence[RoundResult]) -> None:
        """Write what is known and was not yet."""
        for round_ in rounds:
            values = {name: getattr(round_, name) for name in TAGS if (round_.number, name) not in self._written}
            known = {name: value for name, value in values.items() if value is not None}
            if known:
                self._writer.add(round_.number, {TAGS[name]: value for name, value in known.items()})
                self._written.update((round_.number, name) for name in known)
        self._writer.flush()

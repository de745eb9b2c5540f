"""A job's best model on the device: a checkpoint, as its trainer left it, with how it did on the device's own data.

``bitfleet evaluate --load FILE`` reads it. Here its notes are read, without NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge_client.records import read_json

__all__ = ["BestModel", "read_best_model"]

_MAX_HEADER_BYTES = 1 << 22


@dataclass(frozen=True)
class BestModel:
    """The notes of one checkpoint."""

    path: str
    job_id: str
    round_number: int
    """In which it was evaluated: it is the model that this round started from."""
    validation_examples: int
    """Of the device, that it never trains on."""
    validation_correct: int
    validation_loss: float

    @property
    def accuracy(self) -> float:
        """Percent of the validation part."""
        return 100.0 * self.validation_correct / self.validation_examples


def read_best_model(path: Path) -> BestModel | None:
    """Read the notes; None where the file is damaged, which the next task's trainer finds out."""
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = read_json(file.read(min(size, _MAX_HEADER_BYTES)))
        extra = read_json(header["__metadata__"]["bitfleet"])["extra"]
        return BestModel(
            str(path),
            str(extra["job_id"]),
            int(extra["round_number"]),
            int(extra["validation_examples"]),
            int(extra["validation_correct"]),
            float(extra["validation_loss"]),
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None

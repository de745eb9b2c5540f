"""What goes wrong in a simulation."""

from __future__ import annotations

from bnncore.errors import BitfleetError


class SimulationError(BitfleetError):
    """A simulated device or the job failed."""

"""A fleet in a notebook: ``federate`` plays a job here, ``History`` is what came of it."""

from server.notebook.federation import federate
from server.notebook.history import History
from server.simulate.report import RoundResult

__all__ = ["History", "RoundResult", "federate"]

"""A whole federation in one process: the real coordinator, the devices' own code, messages over memory."""

from server.simulate.report import SimulationResult
from server.simulate.run import SimulationError, simulate
from server.simulate.scenario import Scenario

__all__ = ["Scenario", "SimulationError", "SimulationResult", "simulate"]

"""A typed client of the REST API: everything that people and tools can do with a coordinator, from Python."""

from server.client.connection import RequestError
from server.client.events import FleetEvent
from server.client.fleet import FleetClient

__all__ = ["FleetClient", "FleetEvent", "RequestError"]

"""Devices' side: the gRPC service of ``bitfleet.v1`` over the coordinator."""

from server.rpc.ports import create_server, listen
from server.rpc.servicer import FleetService

__all__ = ["FleetService", "create_server", "listen"]

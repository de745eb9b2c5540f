"""Devices' side: the gRPC service of ``bitfleet.v1`` over the coordinator."""

from server.rpc.servicer import FleetService, create_server

__all__ = ["FleetService", "create_server"]

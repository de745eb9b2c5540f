"""Version 1 of the wire protocol: ``fleet_pb2`` (messages) and ``fleet_pb2_grpc`` (the service)."""

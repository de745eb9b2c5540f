"""Where devices connect: over TLS with a certificate of their own, or in the clear on loopback."""

from __future__ import annotations

import grpc

from bitfleet.v1 import fleet_pb2_grpc as pb_grpc
from bnncore.errors import ConfigurationError
from server.identity.tls import ServerTls
from server.limits import ConnectionLimits
from server.rpc.servicer import FleetService

_MESSAGE_ROOM_BYTES = 64 * 1024
"""Bytes that a message may have beyond its chunk of payload."""

_KEEPALIVE_S, _KEEPALIVE_ANSWER_S = 60, 20
"""A connection on which nothing came for so long is tested, and ended when no answer comes: the other end may be gone
without a word. A device's heartbeats come more often, so that costs nothing while it lives."""


def create_server(
    service: FleetService, *, max_chunk_bytes: int, connections: ConnectionLimits | None = None
) -> grpc.aio.Server:
    """Build a gRPC server for the service; the caller adds a port and starts it."""
    limits = connections or ConnectionLimits()
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 0),  # a port in use is an error, not a second server beside the first
            ("grpc.max_receive_message_length", max_chunk_bytes + _MESSAGE_ROOM_BYTES),
            ("grpc.max_metadata_size", limits.max_header_bytes),  # above it some calls are refused, by chance
            ("grpc.absolute_max_metadata_size", limits.max_header_bytes),  # and here all
            # A device has one connection, and for a moment a second one when it comes back.
            ("grpc.max_allowed_incoming_connections", 2 * service.max_streams),
            ("grpc.max_concurrent_streams", service.max_calls_per_device),
            ("grpc.server_handshake_timeout_ms", round(1000 * limits.request_timeout_s)),
            ("grpc.max_connection_idle_ms", round(1000 * limits.idle_timeout_s)),
            ("grpc.keepalive_time_ms", 1000 * _KEEPALIVE_S),
            ("grpc.keepalive_timeout_ms", 1000 * _KEEPALIVE_ANSWER_S),
            ("grpc.http2.min_ping_interval_without_data_ms", 5000),
            # Without it a window of 64 KiB stays one: it would grow to hold whole updates of every device that sends,
            # while the coordinator takes them one after the other (100 that send 1.5 MiB at once: 188 MiB, not 301).
            ("grpc.http2.bdp_probe", 0),
        ]
    )
    pb_grpc.add_FleetServicer_to_server(service, server)  # type: ignore[no-untyped-call]  # generated
    return server


def listen(server: grpc.aio.Server, address: str, tls: ServerTls | None) -> int:
    """Let a server listen; returns its port.

    Args:
      server: not started yet.
      address: ``HOST:PORT``; port 0 = any free one.
      tls: None serves in the clear.

    Raises:
      ConfigurationError: the port is in use.
    """
    try:
        if tls is None:
            return server.add_insecure_port(address)
        credentials = grpc.ssl_server_credentials(
            [(tls.pair.key_pem, tls.pair.chain_pem)],
            root_certificates=tls.client_roots_pem,
            require_client_auth=True,
        )
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise ConfigurationError(
            f"cannot listen on --grpc {address}: the port is in use; stop what uses it or choose another"
        ) from error

"""What others may take of the coordinator. ``Settings`` adds to these what an operator sets besides."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What the coordinator asks of devices and takes on."""

    heartbeat_interval_s: float = 5.0
    """Seconds between a device's heartbeats; after three missed ones it counts as gone."""
    settle_s: float = 0.5
    """Seconds to wait for more devices once there are enough to open a round."""
    upload_idle_s: float = 30.0
    """Seconds without a chunk after which an upload is given up."""
    max_chunk_bytes: int = 256 * 1024
    """Most bytes of payload in one message."""
    max_update_bytes: int = 256 * 1024 * 1024
    """Most bytes of one update."""
    max_jobs: int = 4
    """Most jobs that run at the same time; each takes memory for its model."""
    max_model_bytes: int = 512 * 1024 * 1024
    """Most bytes of a job's model, as float32."""
    max_cohort: int = 10_000
    """Most devices, and so updates, of one round."""
    max_neighbours: int = 256
    """Most members of a round with whom one shares masks, each of which costs it and the coordinator bytes and time."""
    max_refusals: int = 8
    """Refused updates of one device in a round, after which no more of its are read."""
    max_chunks: int = 65_536
    """Most messages that one update comes in."""
    min_upload_rate: int = 1024
    """Bytes a second; an upload that is slower for ``upload_idle_s`` is given up."""
    disk_quota_bytes: int = 0
    """Most bytes of all payloads; old model versions go to make room, then nothing is taken. 0 = without limit."""
    min_free_bytes: int = 0
    """What stays free on the file system of the payloads, in the same way."""
    max_streams: int = 10_000
    """Most devices' streams that are open."""
    max_streams_per_device: int = 3
    """Of them, of one device; a newer one ends the ones before it."""
    max_transfers: int = 1024
    """Most uploads and downloads that are open."""
    max_transfers_per_device: int = 8
    """Of them, of one device."""
    max_requests_per_minute: int = 6000
    """Most calls and events of one device in a minute; the chunks of a transfer do not count."""


@dataclass(frozen=True)
class ConnectionLimits:
    """Bounds on connections, whatever comes over them: for both ports, as far as a port has what is bounded."""

    max_connections: int = 256
    """Most connections to the port of people and tools; devices' have theirs by ``max_streams``."""
    max_connections_per_address: int = 64
    """Of them, from one address."""
    max_event_streams: int = 128
    """Most streams of events that are open; half of them from one address."""
    max_header_bytes: int = 16 * 1024
    """Most bytes of a request's headers, or a call's metadata."""
    max_request_bytes: int = 1024 * 1024
    """Most bytes of the body of a request of people and tools."""
    request_timeout_s: float = 20.0
    """Seconds in which a TLS handshake and a whole request must come, and in which some of an answer must be read."""
    idle_timeout_s: float = 60.0
    """Seconds without a request or a call after which a connection is closed."""

"""The options of ``bitfleet-server serve`` by which an operator bounds what others may take; see ``Settings``."""

from __future__ import annotations

import argparse

_LIMITS = {
    "max_model_bytes": ("N", "most bytes of a job's model as float32 (536870912)"),
    "max_cohort": ("N", "most devices of one round (10000)"),
    "max_neighbours": ("N", "most members with whom one shares masks in secure aggregation (256)"),
    "max_refusals": ("N", "refused updates of a device in a round, then no more are read (8)"),
    "max_chunks": ("N", "most messages that one update comes in (65536)"),
    "min_upload_rate": ("N", "bytes a second; give up an upload that stays slower (1024)"),
    "disk_quota_bytes": ("N", "most bytes of all payloads; old model versions go first (0 = no limit)"),
    "min_free_bytes": ("N", "what stays free on their file system (67108864)"),
    "max_streams": ("N", "most devices' streams that are open (10000)"),
    "max_streams_per_device": ("N", "of them, of one device (3)"),
    "max_transfers": ("N", "most uploads and downloads that are open (1024)"),
    "max_transfers_per_device": ("N", "of them, of one device (8)"),
    "max_requests_per_minute": ("N", "most calls and events of one device (6000)"),
    "max_connections": ("N", "most connections to --http (256)"),
    "max_connections_per_address": ("N", "of them, from one address (64)"),
    "max_event_streams": ("N", "most streams of events that are open on --http (128)"),
    "max_header_bytes": ("N", "most bytes of a request's headers or a call's metadata (16384)"),
    "max_request_bytes": ("N", "most bytes of the body of a request to --http (1048576)"),
    "request_timeout_s": ("SECONDS", "for a TLS handshake and a whole request (20)"),
    "idle_timeout_s": ("SECONDS", "close a connection on which nothing is asked (60)"),
}
"""By field of ``Settings``."""


def add_limit_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each limit."""
    for field, (metavar, text) in _LIMITS.items():
        flag = f"--{field.removesuffix('_s').replace('_', '-')}"
        parser.add_argument(flag, dest=field, metavar=metavar, help=text)


def limits_of(arguments: argparse.Namespace) -> dict[str, str | None]:
    """Return what was given, by field of ``Settings``."""
    return {field: getattr(arguments, field) for field in _LIMITS}

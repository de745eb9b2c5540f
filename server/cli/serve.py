"""``bitfleet-server serve``: builds the settings and runs the coordinator."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path

from server.app.logging import configure_logging
from server.app.serve import serve
from server.cli.limits import limits_of
from server.job_files import load_job
from server.settings import Settings, build_settings


def run(arguments: argparse.Namespace) -> int:
    """Serve; see ``server.app.serve.serve``."""
    settings, sources = build_settings(
        {
            "grpc": arguments.grpc,
            "http": arguments.http,
            "state": arguments.state,
            "database": arguments.database,
            "blobs": arguments.blobs,
            "presigned_downloads": arguments.presigned_downloads,
            "insecure": arguments.insecure,
            "identity": arguments.identity,
            "public_host": None if arguments.public_host is None else tuple(arguments.public_host),
            "public_url": arguments.public_url,
            "tls_cert": arguments.tls_cert,
            "tls_key": arguments.tls_key,
            "tls_ca": arguments.tls_ca,
            "device_certificate_days": arguments.device_certificate_days,
            "device_grace_days": arguments.device_grace_days,
            "enrolments_per_minute": arguments.enrolments_per_minute,
            "new_admin_key": arguments.new_admin_key,
            "job": None if arguments.job is None else tuple(Path(path) for path in arguments.job),
            "exit_when_done": arguments.exit_when_done,
            "heartbeat_interval_s": arguments.heartbeat_interval,
            "settle_s": arguments.settle,
            "drain_s": arguments.drain,
            "upload_idle_s": arguments.upload_idle,
            "max_chunk_bytes": arguments.max_chunk_bytes,
            "max_update_bytes": arguments.max_update_bytes,
            "max_jobs": arguments.max_jobs,
            "log_level": arguments.log_level,
            "log_format": arguments.log_format,
            **limits_of(arguments),
        },
        os.environ,
    )
    if arguments.print_config:
        print_config(settings, sources)
        return 0
    configure_logging(settings.log_level, settings.log_format)
    jobs = [load_job(path) for path in settings.job]
    logging.getLogger(__name__).debug("event=settings %r", settings)
    return asyncio.run(serve(settings, jobs, announce=_announce))


def print_config(settings: Settings, sources: dict[str, str]) -> None:
    """Print every setting, its value and where it came from."""
    shown = settings.shown()
    width = max(len(name) for name in shown)
    for name, value in shown.items():
        print(f"{name:<{width}}  {value}  ({sources[name]})")


def _announce(line: str) -> None:
    print(line, flush=True, file=sys.stdout)

"""Logging of the coordinator's process: standard library, one event a line, ``key=value``, on standard error."""

from __future__ import annotations

import logging
import time


def configure_logging(level: str) -> None:
    """Send the logs of this process to standard error from ``level`` on."""
    formatter = logging.Formatter("%(asctime)sZ level=%(levelname)s logger=%(name)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("server").setLevel(level)

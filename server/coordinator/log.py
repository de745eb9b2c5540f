"""Log lines of events whose values differ from one to the next."""

from __future__ import annotations

import logging


def log_event(log: logging.Logger, event: str, **values: object) -> None:
    """Write an event and its values; reasons, which have several words, are quoted."""
    keys = "".join(f" {name}={'%r' if name == 'reason' else '%s'}" for name in values)
    log.info("event=%s" + keys, event, *values.values())

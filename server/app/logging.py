"""Logging of the coordinator's process: standard library, one event a line, on standard error.

A message is ``event=NAME key=%s ...``. As text that is what is written; as JSON each key is one, with its value's own
type. What a request leaves has the request's id.
"""

from __future__ import annotations

import json
import logging
import re
import time
from typing import Any

from server.api.request_log import request_id

_FIELD = re.compile(r"(\w+)=(%[-#0 +]*\d*(?:\.\d+)?[a-z]|[^\s%]+)(?:\s+|$)")


def configure_logging(level: str, log_format: str = "text") -> None:
    """Send the logs of this process to standard error.

    Args:
      level: from which on.
      log_format: ``text`` or ``json``.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("server").setLevel(level)


class TextFormatter(logging.Formatter):
    """``TIME level=... logger=... event=... key=value ...``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)sZ level=%(levelname)s logger=%(name)s %(message)s", "%Y-%m-%dT%H:%M:%S")
        self.converter = time.gmtime

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        """Write a record's line."""
        name = request_id.get()
        return super().formatMessage(record) + ("" if name is None else f" request={name}")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``at``, ``level``, ``logger``, the message's keys or ``message``, and ``error``."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record's line."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "at": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
        }
        if (name := request_id.get()) is not None:
            line["request"] = name
        values = fields_of(record)
        line |= {"message": record.getMessage()} if values is None else values
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def fields_of(record: logging.LogRecord) -> dict[str, Any] | None:
    """Return a record's keys and values; None where its message is not all of such."""
    text, arguments = str(record.msg), record.args
    if _FIELD.sub("", text) or not isinstance(arguments, tuple):
        return None
    left = list(arguments)
    found: dict[str, Any] = {}
    for name, value in _FIELD.findall(text):
        if not value.startswith("%"):
            found[name] = value
        elif left:
            argument = left.pop(0)
            found[name] = argument if isinstance(argument, bool | int | float | str | None) else str(argument)
        else:
            return None
    return None if left else found

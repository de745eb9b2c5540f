"""How logs are set up, which a command that runs in the tests' own process changes."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def logs_as_before() -> Iterator[None]:
    """Undo what the block does to handlers and levels: a later test would look for lines in vain."""
    root = logging.getLogger()
    loggers = [root, *(logging.getLogger(name) for name in ("bnncore", "edge_client", "server"))]
    handlers, levels = root.handlers, [logger.level for logger in loggers]
    root.handlers = list(handlers)
    try:
        yield
    finally:
        root.handlers = handlers
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

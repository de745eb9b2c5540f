"""Connections to the database, of either kind."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import ExceptionContext, make_url
from sqlalchemy.exc import DataError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from bnncore.errors import ConfigurationError
from server.errors import InvalidRequestError


def make_engine(url: str, name: str = "") -> Engine:
    """Make what connects to a database, when it is used.

    Args:
      url: an SQLAlchemy URL.
      name: by which PostgreSQL shows the connections.

    Raises:
      ConfigurationError: the URL is malformed, or its driver is not installed.
    """
    try:
        parts = make_url(url)
        named = {"application_name": name} if name and parts.get_backend_name() == "postgresql" else {}
        engine = create_engine(parts, poolclass=QueuePool, pool_pre_ping=True, connect_args=named)
    except (SQLAlchemyError, ImportError) as error:
        raise ConfigurationError(f"--database must be a URL of an installed driver: {error}") from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
    else:
        event.listen(engine, "handle_error", _refuse_nul)
    return engine


def shown(engine: Engine) -> str:
    """Return the URL as people may see it."""
    return engine.url.render_as_string(hide_password=True)


def _prepare_sqlite(connection: Any, _record: object) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        connection.execute(f"PRAGMA {pragma}")


def _refuse_nul(context: ExceptionContext) -> None:
    """Say whose mistake it is when PostgreSQL gets what it has no text for: SQLite does, and finds nothing."""
    if isinstance(context.sqlalchemy_exception, DataError) and "NUL (0x00)" in str(context.original_exception):
        raise InvalidRequestError("a text must not hold the character NUL") from context.original_exception

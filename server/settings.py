"""The coordinator's settings: one frozen object, built once in ``main``.

Precedence: command line > environment (``BITFLEET_SERVER_<NAME>``) > default. Unknown names are refused.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bnncore.errors import ConfigurationError

ENVIRONMENT_PREFIX = "BITFLEET_SERVER_"


@dataclass(frozen=True)
class Address:
    """Where to listen: ``host:port``; port 0 = any free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``host:port``; raises ValueError when it is something else."""
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError("HOST:PORT is required, e.g. 127.0.0.1:7070")
        return cls(host, int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Settings:
    """What ``bitfleet-server serve`` runs with."""

    grpc: Address = Address("127.0.0.1", 7070)
    """Where devices connect."""
    http: Address = Address("127.0.0.1", 8080)
    """Where people and tools connect."""
    state: Path = Path("bitfleet-state")
    """Folder of the payloads, the lock and (by default) the database."""
    database: str = ""
    """SQLAlchemy URL; empty = an SQLite file in the state folder."""
    insecure: bool = False
    """Serve without TLS; on loopback only."""
    job: tuple[Path, ...] = ()
    """Job files to create at start; one that was created before is not created again."""
    exit_when_done: bool = False
    """End when no job is pending or running."""
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
    log_level: str = "INFO"

    def __post_init__(self) -> None:
        for name, address in (("grpc", self.grpc), ("http", self.http)):
            if not address.is_loopback:
                raise ConfigurationError(
                    f"--{name} {address} is reachable from other machines, which needs TLS, and this version serves "
                    "without TLS only: use a loopback address such as 127.0.0.1"
                )
        if not self.insecure:
            raise ConfigurationError("serving without TLS must be asked for: add --insecure (loopback only)")
        if self.grpc == self.http and self.grpc.port != 0:
            raise ConfigurationError(f"--grpc and --http need two addresses, both are {self.grpc}")
        for name in ("heartbeat_interval_s", "upload_idle_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigurationError(f"{name} must be a positive number of seconds, got {getattr(self, name)}")
        if not 0 <= self.settle_s < math.inf:
            raise ConfigurationError(f"settle_s must be 0 or more seconds, got {self.settle_s}")
        if not 1024 <= self.max_chunk_bytes <= 2 * 1024 * 1024:
            raise ConfigurationError(f"max_chunk_bytes must be 1 KiB to 2 MiB, got {self.max_chunk_bytes}")
        if self.max_update_bytes < self.max_chunk_bytes:
            raise ConfigurationError(
                f"max_update_bytes ({self.max_update_bytes}) must hold at least one chunk ({self.max_chunk_bytes})"
            )
        if self.log_level not in _LOG_LEVELS:
            raise ConfigurationError(f"log_level must be one of {', '.join(_LOG_LEVELS)}, got {self.log_level!r}")

    @property
    def database_url(self) -> str:
        """The database to open."""
        return self.database or f"sqlite:///{self.state / 'bitfleet.db'}"

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.shown().items())
        return f"Settings({shown})"

    def shown(self) -> dict[str, str]:
        """Return all values as text, the database's password masked."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["job"] = ",".join(str(path) for path in self.job)
        values["database"] = _mask_password(self.database_url)
        return {name: str(value) for name, value in values.items()}


_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


def build_settings(command_line: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[Settings, dict[str, str]]:
    """Merge the sources.

    Args:
      command_line: values by field name; None = not given.
      environ: the process's environment; only names with the prefix are read.

    Returns:
      The settings, and for each field where its value came from: "command line", "environment" or "default".

    Raises:
      ConfigurationError: an unknown name, a malformed value, or values that contradict each other.
    """
    known = {field.name for field in fields(Settings)}
    given = {name: value for name, value in command_line.items() if value is not None}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ConfigurationError(f"unknown settings {unknown}; known are {sorted(known)}")
    values: dict[str, Any] = {}
    sources = dict.fromkeys(sorted(known), "default")
    for name, text in environ.items():
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        field = name.removeprefix(ENVIRONMENT_PREFIX).lower()
        if field not in known:
            names = ", ".join(ENVIRONMENT_PREFIX + name.upper() for name in sorted(known))
            raise ConfigurationError(f"environment variable {name} is unknown; known are {names}")
        values[field] = _parse(field, text, where=name)
        sources[field] = "environment"
    for field, value in given.items():
        where = f"--{field.removesuffix('_s').replace('_', '-')}"
        values[field] = _parse(field, value, where=where) if isinstance(value, str) else value
        sources[field] = "command line"
    return Settings(**values), sources


def _parse_flag(text: str) -> bool:
    if text.lower() not in ("1", "true", "yes", "0", "false", "no"):
        raise ValueError("true or false is required")
    return text.lower() in ("1", "true", "yes")


_PARSERS: dict[str, Callable[[str], Any]] = {
    "grpc": Address.parse,
    "http": Address.parse,
    "state": Path,
    "insecure": _parse_flag,
    "job": lambda text: tuple(Path(part) for part in text.split(",") if part),
    "exit_when_done": _parse_flag,
    "heartbeat_interval_s": float,
    "settle_s": float,
    "upload_idle_s": float,
    "max_chunk_bytes": int,
    "max_update_bytes": int,
    "log_level": str.upper,
}


def _parse(field: str, text: str, *, where: str) -> Any:
    try:
        return _PARSERS.get(field, str)(text)
    except ValueError as error:
        raise ConfigurationError(f"{where}={text!r} is malformed: {error}") from error


def _mask_password(url: str) -> str:
    head, at, tail = url.rpartition("@")
    scheme, slashes, login = head.partition("://")
    user, colon, _ = login.partition(":")
    return f"{scheme}{slashes}{user}:***@{tail}" if at and colon else url

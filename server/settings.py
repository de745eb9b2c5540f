"""The coordinator's settings: one frozen object, built once in ``main``.

Precedence: command line > environment (``BITFLEET_SERVER_<NAME>``) > default. Unknown names are refused.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bnncore.errors import ConfigurationError
from server.limits import ConnectionLimits, Limits
from server.storage.s3_address import S3Address

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
class Settings(Limits, ConnectionLimits):
    """What ``bitfleet-server serve`` runs with, its limits among it."""

    grpc: Address = Address("127.0.0.1", 7070)
    """Where devices connect."""
    http: Address = Address("127.0.0.1", 8080)
    """Where people and tools connect."""
    state: Path = Path("bitfleet-state")
    """Folder of the payloads, the lock and (by default) the database."""
    database: str = ""
    """SQLAlchemy URL; empty = an SQLite file in the state folder."""
    blobs: str = ""
    """Where payloads are: ``s3://BUCKET/PREFIX?endpoint=URL&region=REGION``; empty = a folder in the state folder."""
    presigned_downloads: bool = False
    """Give devices URLs at which they read models from the object store themselves."""
    insecure: bool = False
    """Serve without TLS and without asking who it is; on loopback only."""
    identity: Path | None = None
    """Folder of the fleet's authority, which all its coordinators share; None = in the state folder."""
    public_host: tuple[str, ...] = ()
    """Host names and addresses by which devices and people reach this machine, for its certificate."""
    public_url: str = ""
    """Where browsers reach the dashboard when that is not here: the address of a proxy, such as https://fleet.example."""
    tls_cert: Path | None = None
    """The operator's own certificate chain (PEM) in place of one that the coordinator makes."""
    tls_key: Path | None = None
    """The key of ``tls_cert``."""
    tls_ca: Path | None = None
    """The certificate of the authority that signed ``tls_cert``: devices know the coordinator by it."""
    device_certificate_days: float = 7.0
    """Life of a device's certificate; the device renews it when a third is left."""
    device_grace_days: float = 90.0
    """Days after its certificate's end in which a device that was away still gets a new one by its key."""
    enrolments_per_minute: int = 600
    """Most requests to enrol, renew or leave in a minute, and most keys that are none; a tenth from one address."""
    new_admin_key: bool = False
    """Make another admin key for this machine's command line, when the others are lost."""
    job: tuple[Path, ...] = ()
    """Job files to create at start; one that was created before is not created again."""
    exit_when_done: bool = False
    """End when no job is pending or running."""
    drain_s: float = 5.0
    """Seconds that uploads and merges under way get to end when the coordinator is told to stop."""
    min_free_bytes: int = 64 * 1024 * 1024
    """The operator's disk is not filled, unless that is asked for."""
    log_level: str = "INFO"
    log_format: str = "text"
    """``text``, or ``json`` for one object a line."""

    def __post_init__(self) -> None:
        if self.blobs:
            S3Address.parse(self.blobs)
        elif self.presigned_downloads:
            raise ConfigurationError(
                "--presigned-downloads needs an object store; name one by --blobs s3://BUCKET/PREFIX"
            )
        if self.public_url:
            self._check_public_url()
        if self.insecure:
            for name, address in (("grpc", self.grpc), ("http", self.http)):
                if not address.is_loopback:
                    raise ConfigurationError(
                        f"--{name} {address} is reachable from other machines, which needs TLS: leave --insecure out, "
                        "or use a loopback address such as 127.0.0.1"
                    )
        files = {"tls_cert": self.tls_cert, "tls_key": self.tls_key, "tls_ca": self.tls_ca}
        missing = [f"--{name.replace('_', '-')}" for name, path in files.items() if path is None]
        if 0 < len(missing) < len(files):
            raise ConfigurationError(
                f"an own certificate needs --tls-cert, --tls-key and --tls-ca; {missing} are missing"
            )
        if self.insecure and len(missing) < len(files):
            raise ConfigurationError("--insecure serves without TLS: leave --tls-cert, --tls-key and --tls-ca out")
        if self.insecure and self.identity is not None:
            raise ConfigurationError("--insecure serves without TLS: leave --identity out")
        if self.grpc == self.http and self.grpc.port != 0:
            raise ConfigurationError(f"--grpc and --http need two addresses, both are {self.grpc}")
        for name in ("heartbeat_interval_s", "upload_idle_s", "request_timeout_s", "idle_timeout_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigurationError(f"{name} must be a positive number of seconds, got {getattr(self, name)}")
        if not 0 < self.device_certificate_days <= 398 or not 0 <= self.device_grace_days <= 3650:
            raise ConfigurationError(
                "device_certificate_days must be more than 0 and at most 398, device_grace_days 0 to 3650, got "
                f"{self.device_certificate_days} and {self.device_grace_days}"
            )
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.disk_quota_bytes < 0 or self.min_free_bytes < 0:
            raise ConfigurationError(
                "disk_quota_bytes and min_free_bytes must be 0 or more, got "
                f"{self.disk_quota_bytes} and {self.min_free_bytes}"
            )
        if not 1024 <= self.max_header_bytes <= 1024 * 1024:
            raise ConfigurationError(f"max_header_bytes must be 1 KiB to 1 MiB, got {self.max_header_bytes}")
        for name in ("settle_s", "drain_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigurationError(f"{name} must be 0 or more seconds, got {getattr(self, name)}")
        if not 1024 <= self.max_chunk_bytes <= 2 * 1024 * 1024:
            raise ConfigurationError(f"max_chunk_bytes must be 1 KiB to 2 MiB, got {self.max_chunk_bytes}")
        if self.max_update_bytes < self.max_chunk_bytes:
            raise ConfigurationError(
                f"max_update_bytes ({self.max_update_bytes}) must hold at least one chunk ({self.max_chunk_bytes})"
            )
        if self.max_chunks * self.max_chunk_bytes < self.max_update_bytes:
            raise ConfigurationError(
                f"max_chunks ({self.max_chunks}) of max_chunk_bytes ({self.max_chunk_bytes}) must hold "
                f"max_update_bytes ({self.max_update_bytes})"
            )
        if self.log_format not in _LOG_FORMATS:
            raise ConfigurationError(f"log_format must be one of {', '.join(_LOG_FORMATS)}, got {self.log_format!r}")
        if self.log_level not in _LOG_LEVELS:
            raise ConfigurationError(f"log_level must be one of {', '.join(_LOG_LEVELS)}, got {self.log_level!r}")

    def _check_public_url(self) -> None:
        if self.insecure:
            raise ConfigurationError(
                "--insecure lets everyone in, who must not come by a proxy: leave --public-url out"
            )
        if not self.public_origin:
            raise ConfigurationError(
                f"--public-url must be https://HOST or https://HOST:PORT and no more, got {self.public_url!r}"
            )

    @property
    def public_origin(self) -> str:
        """``public_url`` as browsers name the origin of its pages (RFC 6454, 6.1); empty: it is none."""
        found = re.fullmatch(r"(https://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\]))(:[0-9]{1,5})?/?", self.public_url.lower())
        return "" if found is None else found[1] + (found[2] if found[2] not in (None, ":443") else "")

    @property
    def database_url(self) -> str:
        """The database to open."""
        return self.database or f"sqlite:///{self.state / 'bitfleet.db'}"

    @property
    def store(self) -> str:
        """The object store of payloads, which all coordinators over one database must share; empty: a local folder."""
        return str(S3Address.parse(self.blobs)) if self.blobs else ""

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.shown().items())
        return f"Settings({shown})"

    def shown(self) -> dict[str, str]:
        """Return all values as text, the database's password masked."""
        own_first = dict.fromkeys([*Settings.__annotations__, *(field.name for field in fields(self))])
        values = {name: getattr(self, name) for name in own_first}
        for name in ("job", "public_host"):
            values[name] = ",".join(str(part) for part in values[name])
        values["database"] = _mask_password(self.database_url)
        return {name: "" if value is None else str(value) for name, value in values.items()}


_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_LOG_FORMATS = ("text", "json")

_COUNTS = (
    "enrolments_per_minute",
    "max_cohort",
    "max_chunks",
    "max_connections",
    "max_connections_per_address",
    "max_event_streams",
    "max_jobs",
    "max_model_bytes",
    "max_neighbours",
    "max_refusals",
    "max_request_bytes",
    "max_requests_per_minute",
    "max_streams",
    "max_streams_per_device",
    "max_transfers",
    "max_transfers_per_device",
    "min_upload_rate",
)
"""Settings that must be at least 1."""


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
    "presigned_downloads": _parse_flag,
    "identity": Path,
    "job": lambda text: tuple(Path(part) for part in text.split(",") if part),
    "public_host": lambda text: tuple(part.strip() for part in text.split(",") if part.strip()),
    "tls_cert": Path,
    "tls_key": Path,
    "tls_ca": Path,
    "device_certificate_days": float,
    "device_grace_days": float,
    **dict.fromkeys(_COUNTS, int),
    "new_admin_key": _parse_flag,
    "exit_when_done": _parse_flag,
    "heartbeat_interval_s": float,
    "settle_s": float,
    "drain_s": float,
    "upload_idle_s": float,
    "max_chunk_bytes": int,
    "max_update_bytes": int,
    "max_header_bytes": int,
    "disk_quota_bytes": int,
    "min_free_bytes": int,
    "request_timeout_s": float,
    "idle_timeout_s": float,
    "log_level": str.upper,
    "log_format": str.lower,
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

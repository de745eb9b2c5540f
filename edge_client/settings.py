"""What the owner of a device can set. Precedence: command line, then environment, then default."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from bnncore.amounts import read_bytes
from edge_client.errors import SettingsError
from edge_client.hours import Hours, read_hours
from edge_client.policy import default_policy_file

__all__ = [
    "ENVIRONMENT_PREFIX",
    "KEEP_TRAINER_S",
    "WATCH_S",
    "ClientSettings",
    "check_device_id",
    "default_state_dir",
    "find_policy",
]

ENVIRONMENT_PREFIX = "BITFLEET_CLIENT_"

KEEP_TRAINER_S = 20.0
"""Default of ``keep_trainer``: longer than the pause between two rounds of a fleet whose devices are alike."""

WATCH_S = 60.0
"""Default of ``watch``."""

_DEVICE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SERVER = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):(\d{1,5})")
_LOG_LEVELS = ("debug", "info", "warning", "error")


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """Name the folder where a device keeps what must survive: ``$XDG_STATE_HOME/bitfleet``, by default in the home."""
    home = environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "bitfleet"


@dataclass(frozen=True)
class ClientSettings:
    """The effective settings of one agent."""

    server: str
    """``HOST:PORT`` of the coordinator's gRPC side."""
    state: Path
    """Folder that this agent alone writes to."""
    insecure: bool = False
    """Whether to speak in the clear to a coordinator on this machine; without it the device must be enrolled."""
    data: Path | None = None
    """Folder with the device's data; None: what ``dataset`` finds by itself, or ``$BITFLEET_DATA``."""
    dataset: str | None = None
    """Name of the data set's layout; None: detected."""
    device_id: str | None = None
    """The device's name, 1 to 64 characters of [A-Za-z0-9._-]; None: made once and kept in ``state``."""
    threads: int = 1
    """Threads of a trainer, at least 1."""
    memory_budget: int = 0
    """Bytes of memory that a trainer may take; 0: without limit. The coordinator sends no task that takes more."""
    keep_trainer: float = KEEP_TRAINER_S
    """Seconds that a trainer is kept after a task, for the next one; 0: a task's trainer ends with it."""
    watch: float = WATCH_S
    """Seconds between looks at the data folder, which may grow; 0: it is looked at once."""
    policy: Path | None = None
    """File with the owner's policy; None: the rules that hold without one."""
    allow_battery: bool = False
    """Whether to train while the device runs on its battery."""
    metered: bool = False
    """Whether the network is metered; one through a mobile modem is anyway."""
    allow_metered: bool = False
    """Whether to take part over a metered network."""
    max_temperature: float | None = None
    """Degrees Celsius of the hottest thermal zone above which the device does not train; None: any."""
    hours: Hours | None = None
    """Hours of the day in which the device trains; None: all."""
    cpu_share: float = 100.0
    """Percent of the time that a trainer runs, above 0."""
    max_retries: int | None = None
    """Attempts in a row to reach the coordinator before giving up; None: never give up."""
    log_level: str = "info"
    """debug, info, warning or error."""

    def __post_init__(self) -> None:
        match = _SERVER.fullmatch(self.server)
        if match is None or not 0 < int(match[2]) < 65536:
            raise SettingsError(
                f"--server must be HOST:PORT with a port in 1..65535, got {self.server!r}; "
                "the coordinator prints its gRPC address when it starts"
            )
        if self.insecure and not _is_loopback(match[1]):
            raise SettingsError(
                f"--insecure speaks in the clear, to this machine alone, and {self.server} may be another: enrol this "
                "device with bitfleet-client enroll, and leave --insecure out"
            )
        check_device_id(self.device_id)
        if self.threads < 1:
            raise SettingsError(f"--threads must be at least 1, got {self.threads}")
        if not 0 <= self.keep_trainer < math.inf:
            raise SettingsError(f"--keep-trainer must be seconds, 0 or more, got {self.keep_trainer:g}")
        if not 0 <= self.watch < math.inf:
            raise SettingsError(f"--watch must be seconds, 0 or more, got {self.watch:g}")
        if not 0 < self.cpu_share <= 100:
            raise SettingsError(f"--cpu-share must be percent, above 0 and at most 100, got {self.cpu_share:g}")
        if self.max_retries is not None and self.max_retries < 0:
            raise SettingsError(f"--max-retries must be at least 0, got {self.max_retries}")
        if self.log_level not in _LOG_LEVELS:
            raise SettingsError(f"--log-level must be one of {', '.join(_LOG_LEVELS)}, got {self.log_level!r}")

    @classmethod
    def resolve(
        cls, given: Mapping[str, str | None], environ: Mapping[str, str], enrolled_at: str | None = None
    ) -> ClientSettings:
        """Build the settings of ``run``.

        Args:
          enrolled_at: the coordinator at which this device is enrolled, as ``HOST:PORT``; the default.
          given: values of the command line by field name, as text; None means not given.
          environ: the environment; ``BITFLEET_CLIENT_<FIELD>`` stands for a flag.

        Raises:
          SettingsError: a value makes no sense, a variable is not known, or no coordinator or no data are named.
        """
        known = {field.name for field in fields(cls)}
        values: dict[str, str] = {}
        for name, text in environ.items():
            if name.startswith(ENVIRONMENT_PREFIX):
                field = name.removeprefix(ENVIRONMENT_PREFIX).lower()
                if field not in known:
                    names = ", ".join(ENVIRONMENT_PREFIX + key.upper() for key in sorted(known))
                    raise SettingsError(f"{name} is not a variable that bitfleet-client knows; it knows {names}")
                values[field] = text
        values.update({name: text for name, text in given.items() if text is not None})
        if enrolled_at is not None:
            values.setdefault("server", enrolled_at)
        if "server" not in values:
            raise SettingsError(
                "this device is not enrolled: run bitfleet-client enroll first. A coordinator on this machine that is "
                "served with --insecure is named by --server HOST:PORT --insecure"
            )
        if not values.keys() & {"data", "dataset"} and "BITFLEET_DATA" not in environ:
            raise SettingsError(
                "the device's data must be named: --data DIR, --dataset NAME, or $BITFLEET_CLIENT_DATA; "
                "nothing in that folder ever leaves the device"
            )
        return cls(
            server=values["server"],
            insecure=_switch("insecure", values.get("insecure", "no")),
            state=Path(values["state"]) if "state" in values else default_state_dir(environ),
            data=Path(values["data"]) if "data" in values else None,
            dataset=values.get("dataset"),
            device_id=values.get("device_id"),
            threads=_whole("threads", values.get("threads", "1")),
            memory_budget=_amount("memory-budget", values.get("memory_budget", "0")),
            keep_trainer=_number("keep-trainer", "seconds", values.get("keep_trainer", str(KEEP_TRAINER_S))),
            watch=_number("watch", "seconds", values.get("watch", str(WATCH_S))),
            policy=find_policy(values.get("policy"), environ),
            allow_battery=_switch("allow-battery", values.get("allow_battery", "no")),
            metered=_switch("metered", values.get("metered", "no")),
            allow_metered=_switch("allow-metered", values.get("allow_metered", "no")),
            max_temperature=(
                _number("max-temperature", "degrees Celsius", values["max_temperature"])
                if "max_temperature" in values
                else None
            ),
            hours=_hours(values["hours"]) if "hours" in values else None,
            cpu_share=_number("cpu-share", "percent", values.get("cpu_share", "100")),
            max_retries=_whole("max-retries", values["max_retries"]) if "max_retries" in values else None,
            log_level=values.get("log_level", "info").lower(),
        )


def find_policy(given: str | None, environ: Mapping[str, str]) -> Path | None:
    """Find the policy: the file that is named, which must be there, else the usual one where it is."""
    usual = default_policy_file(environ)
    return Path(given) if given else usual if usual.exists() else None


def check_device_id(device_id: str | None) -> None:
    """Raise SettingsError unless a device's name is well-formed, where one is given."""
    if device_id is not None and _DEVICE_ID.fullmatch(device_id) is None:
        raise SettingsError(f"--device-id must be 1 to 64 characters of [A-Za-z0-9._-], got {device_id!r}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _whole(flag: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise SettingsError(f"--{flag} must be a whole number, got {text!r}") from None


def _amount(flag: str, text: str) -> int:
    try:
        return read_bytes(text)
    except ValueError as error:
        raise SettingsError(f"--{flag} {error}") from None


def _switch(flag: str, text: str) -> bool:
    if text.lower() not in ("yes", "no"):
        raise SettingsError(f"--{flag} must be yes or no, got {text!r}")
    return text.lower() == "yes"


def _hours(text: str) -> Hours:
    try:
        return read_hours(text)
    except ValueError as error:
        raise SettingsError(f"--hours {error}") from None


def _number(flag: str, unit: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise SettingsError(f"--{flag} must be {unit}, got {text!r}")
    return number

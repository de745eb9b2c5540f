"""The owner's policy: what a coordinator may ask of this device, read from a file and kept whatever it says.

::

    [jobs]
    allow = ["digits-*"]        # ids of jobs, with * and ?

    [task]
    max_memory = "64MiB"        # of its trainer, as this device plans it; by default what the machine has
    max_model = "16MiB"         # of the payload of a model, and of all steps to one
    max_seconds = 3600          # from its start to its update; by default a day
    max_steps = 100000          # local ones
    max_pause = 600             # seconds that it is held by a rule of [device] before it is given back

    [device]
    hours = "22:00-06:00"       # in which it trains, by its clock; several: "22:00-06:00,12:30-13:30"
    cpu_share = 50              # percent of the time that its trainer runs
    max_temperature = 70        # degrees Celsius
    mains_only = true           # whatever --allow-battery says
    unmetered_only = true       # whatever --allow-metered says

    [day]
    max_down = "200MiB"         # from the coordinator
    max_up = "50MiB"            # of updates
    max_written = "1GiB"        # to the disk

    [privacy]
    min_cohort = 10             # devices whose updates a model is made of, this one among them
    require_secure_aggregation = true
    max_epsilon = 8             # of differential privacy, over all jobs; the devices add the noise
    delta = 1e-5                # beside it

A rule that this version does not know is an error, so that none is believed to hold that does not.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnncore.amounts import read_bytes
from edge_client.errors import PolicyError
from edge_client.hours import Hours, read_hours

__all__ = ["Policy", "default_policy_file", "read_policy"]

DAY_S = 86400.0
MAX_PAUSE_S = 600.0
DELTA = 1e-5


@dataclass(frozen=True)
class Policy:
    """The rules; None: no such limit."""

    jobs: tuple[str, ...] = ("*",)
    """Patterns of the ids of jobs that are worked for."""
    max_memory: int | None = None
    """Bytes of memory of a trainer."""
    max_model: int | None = None
    """Bytes of the payload of a model, and of all steps to one."""
    max_seconds: float = DAY_S
    """Of one task, from its start to its update."""
    max_steps: int | None = None
    """Local steps of one task."""
    max_pause: float = MAX_PAUSE_S
    """Seconds that a task is held by one of the rules below before it is given back."""
    hours: Hours | None = None
    """Hours of the day in which the device trains."""
    cpu_share: float = 100.0
    """Percent of the time that a trainer runs, above 0."""
    max_temperature: float | None = None
    """Degrees Celsius of the hottest thermal zone above which the device does not train."""
    mains_only: bool = False
    """Whether it does not train on its battery, whatever the flags say."""
    unmetered_only: bool = False
    """Whether it takes no part over a metered network, whatever the flags say."""
    max_down: int | None = None
    """Bytes from the coordinator in a day."""
    max_up: int | None = None
    """Bytes of updates in a day."""
    max_written: int | None = None
    """Bytes written to the disk in a day."""
    min_cohort: int = 1
    """Devices whose updates a model is made of at least: as the coordinator says, or as a secure sum shows."""
    require_secure_aggregation: bool = False
    """Whether the coordinator may see sums of updates alone, of devices whose keys are signed."""
    max_epsilon: float | None = None
    """Of differential privacy, at ``delta`` and over all jobs, as the device counts it; None: any, or no noise."""
    delta: float = DELTA
    """Chance beside ``max_epsilon``."""

    def allows_job(self, job_id: str) -> bool:
        """Say whether a job may be worked for."""
        return any(fnmatch.fnmatchcase(job_id, pattern) for pattern in self.jobs)


def default_policy_file(environ: Mapping[str, str]) -> Path:
    """Name the file that is read where none is named: ``$XDG_CONFIG_HOME/bitfleet/policy.toml``."""
    home = environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "bitfleet" / "policy.toml"


def read_policy(path: Path | None) -> Policy:
    """Read a policy file.

    Args:
      path: the file; None: the rules that hold without one.

    Raises:
      PolicyError: it cannot be read, or holds what is no rule; the message names file, line and key.
    """
    if path is None:
        return Policy()
    import tomllib  # devices without a policy do without it

    try:
        text = path.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise PolicyError(f"the policy {path} cannot be read: {error}") from error
    values: dict[str, Any] = {}
    for section, table in tables.items():
        rules = _RULES.get(section)
        if rules is None or not isinstance(table, dict):
            raise PolicyError(f"{path}{_line_of(text, section)}: there is no section [{section}]; {_known(_RULES)}")
        for key, value in table.items():
            where = f"{path}{_line_of(text, section, key)}: {key} in [{section}]"
            if key not in rules:
                raise PolicyError(f"{where} is no rule that this version keeps; {_known(rules)}")
            try:
                field, read = rules[key]
                values[field] = read(value)
            except ValueError as error:
                raise PolicyError(f"{where} {error}") from None
    return Policy(**values)


def _patterns(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(pattern, str) for pattern in value):
        raise ValueError(f'must be a list of patterns such as ["digits-*"], got {value!r:.80}')
    return tuple(value)


def _amount(value: object) -> int:
    if isinstance(value, str):
        return read_bytes(value)
    if type(value) is not int or value < 0:
        raise ValueError(f"must be an amount such as 64MiB or 500000, got {value!r:.80}")
    return value


def _seconds(value: object) -> float:
    if type(value) not in (int, float) or not 0 < value < 1e9:  # type: ignore[operator]
        raise ValueError(f"must be seconds, more than 0, got {value!r:.80}")
    return float(value)  # type: ignore[arg-type]


def _hours(value: object) -> Hours:
    if not isinstance(value, str):
        raise ValueError(f'must be spans of the day such as "22:00-06:00", got {value!r:.80}')
    return read_hours(value)


def _percent(value: object) -> float:
    if type(value) not in (int, float) or not 0 < value <= 100:  # type: ignore[operator]
        raise ValueError(f"must be percent, above 0 and at most 100, got {value!r:.80}")
    return float(value)  # type: ignore[arg-type]


def _degrees(value: object) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise ValueError(f"must be degrees Celsius, got {value!r:.80}")
    return float(value)  # type: ignore[arg-type]


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, got {value!r:.80}")
    return value


def _epsilon(value: object) -> float:
    if type(value) not in (int, float) or not 0 < value < math.inf:  # type: ignore[operator]
        raise ValueError(f"must be a number above 0, got {value!r:.80}")
    return float(value)  # type: ignore[arg-type]


def _chance(value: object) -> float:
    if type(value) is not float or not 0 < value < 1:
        raise ValueError(f"must be a number between 0 and 1 such as 1e-5, got {value!r:.80}")
    return value


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"must be a whole number, 0 or more, got {value!r:.80}")
    return value


_RULES: dict[str, dict[str, tuple[str, Callable[[object], Any]]]] = {
    "jobs": {"allow": ("jobs", _patterns)},
    "task": {
        "max_memory": ("max_memory", _amount),
        "max_model": ("max_model", _amount),
        "max_seconds": ("max_seconds", _seconds),
        "max_steps": ("max_steps", _count),
        "max_pause": ("max_pause", _seconds),
    },
    "device": {
        "hours": ("hours", _hours),
        "cpu_share": ("cpu_share", _percent),
        "max_temperature": ("max_temperature", _degrees),
        "mains_only": ("mains_only", _switch),
        "unmetered_only": ("unmetered_only", _switch),
    },
    "day": {
        "max_down": ("max_down", _amount),
        "max_up": ("max_up", _amount),
        "max_written": ("max_written", _amount),
    },
    "privacy": {
        "min_cohort": ("min_cohort", _count),
        "require_secure_aggregation": ("require_secure_aggregation", _switch),
        "max_epsilon": ("max_epsilon", _epsilon),
        "delta": ("delta", _chance),
    },
}
"""By section and key: the field of ``Policy``, and what reads its value."""


def _known(names: Mapping[str, object]) -> str:
    return f"known are {', '.join(names)}"


def _line_of(text: str, section: str, key: str | None = None) -> str:
    """Find where a section, or a key of it, stands, as ``, line N``; empty where it is written in an uncommon way."""
    current = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+\s*([^\]\s]+)\s*\]", line):
            current = header[1].strip("\"'")
        name = line.partition("=")[0].strip().strip("\"'")
        is_section = key is None and (current == section or name == section)
        if is_section or (key is not None and (current, name) == (section, key)) or name == f"{section}.{key}":
            return f", line {number}"
    return ""

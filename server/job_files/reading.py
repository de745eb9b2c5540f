"""Job files in JSON, TOML and YAML, and mistakes told with their file and line."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bnncore.errors import ConfigurationError
from server.errors import InvalidJobError
from server.job_files.changes import apply_changes
from server.job_files.lines import find_line
from server.job_files.safe_yaml import load_yaml
from server.job_problems import JobProblem
from server.jobs import JobConfig, parse_job

_MAX_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class JobFile:
    """A job as somebody wrote it.

    Attributes:
      name: of the file, for messages.
      kind: ``json``, ``toml`` or ``yaml``.
      text: what is in it.
      value: the same, parsed; not validated.
    """

    name: str
    kind: str
    text: str
    value: Any

    def validate(self, changes: Mapping[str, Any] | None = None) -> JobConfig:
        """Validate the job.

        Args:
          changes: made to it first; see ``apply_changes``.

        Raises:
          InvalidJobError: all that is wrong, each with its line where that is known.
        """
        try:
            return parse_job(apply_changes(self.value, changes or {}))
        except InvalidJobError as error:
            if not error.problems:
                raise InvalidJobError(f"{self.name}: {error}") from error
            told = "\n".join(self._tell(problem, changes or {}) for problem in error.problems)
            raise InvalidJobError(f"the job is not valid:\n{told}", error.problems) from error

    def _tell(self, problem: JobProblem, changes: Mapping[str, Any]) -> str:
        key = ".".join(map(str, problem.path))
        if any(key == changed or key.startswith(f"{changed}.") for changed in changes):
            return f"--set {problem}"
        line = find_line(self.kind, self.text, problem.path or _first_key(problem.words, self.value))
        return f"{self.name}{'' if line is None else f':{line}'}: {problem}"


def load_job(path: Path) -> JobConfig:
    """Read a job file and validate it.

    Raises:
      ConfigurationError: the file cannot be read or parsed.
      InvalidJobError: the job in it is not valid.
    """
    return read_job_file(path).validate()


def read_job_file(path: Path) -> JobFile:
    """Read a job file: TOML when its name ends in ``.toml``, YAML in ``.yaml`` or ``.yml``, and JSON otherwise.

    Raises:
      ConfigurationError: the file cannot be read or parsed.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES} bytes")
        text = data.decode()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot read the job file {path}: {error}") from error
    kind = {".toml": "toml", ".yaml": "yaml", ".yml": "yaml"}.get(path.suffix.lower(), "json")
    return parse_text(str(path), kind, text)


def parse_text(name: str, kind: str, text: str) -> JobFile:
    """Parse the text of a job file.

    Args:
      name: of the file, for messages.
      kind: ``json``, ``toml`` or ``yaml``.
      text: what is in it.

    Raises:
      ConfigurationError: it cannot be parsed; the message says where.
    """
    try:
        value = load_yaml(name, text) if kind == "yaml" else _PARSERS[kind](text)
        return JobFile(name, kind, text, _plain(value))
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"cannot read the job file {name} as {kind.upper()}: {error}") from error


def _load_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_without_duplicates)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"key {twice[0]!r} is written twice")
    return dict(pairs)


_PARSERS: dict[str, Callable[[str], Any]] = {"json": _load_json, "toml": tomllib.loads}


def _plain(value: Any) -> Any:
    """Return JSON values: times, which TOML and YAML have, as texts."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value.isoformat() if isinstance(value, datetime) else value


def _first_key(words: str, value: Any) -> tuple[str, ...]:
    """Find the key that a message about several keys names first."""
    keys = value if isinstance(value, dict) else {}
    named = (word for word in words.replace(":", " ").split() if word in keys)
    return tuple(key for key in [next(named, None)] if key is not None)

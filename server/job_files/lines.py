"""On which line of a job file a key stands."""

from __future__ import annotations

import re

from server.job_files.safe_yaml import find_yaml_line
from server.job_problems import KeyPath

_TABLE = re.compile(r"^\s*\[([^\[\]]+)\]\s*(?:#.*)?$")
_KEY = re.compile(r"""^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")


def find_line(kind: str, text: str, path: KeyPath) -> int | None:
    """Find the line of a key, or of the innermost one around it that is found; None: of none.

    Args:
      kind: ``json``, ``toml`` or ``yaml``.
      text: of the file, which could be parsed.
      path: the key.
    """
    if not path:
        return None
    if kind == "toml":
        lines = _toml_lines(text)
        found = (lines.get(tuple(map(str, path[:length]))) for length in range(len(path), 0, -1))
        return next((line for line in found if line is not None), None)
    return find_yaml_line(text, path)  # JSON is YAML, unless it is indented with tabs


def _toml_lines(text: str) -> dict[tuple[str, ...], int]:
    """Find the lines of keys: by their looks, since Python's parser does not tell."""
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if match := _TABLE.match(line):
            table = path = _split(match[1])
        elif match := _KEY.match(line):
            path = (*table, *_split(match[1]))
        else:
            continue
        for length in range(1, len(path) + 1):
            lines.setdefault(path[:length], number)
    return lines


def _split(dotted: str) -> tuple[str, ...]:
    return tuple(key.strip().strip("\"'") for key in dotted.split("."))

"""Changes to a job from the command line: ``--set rounds=5 --set model.params.widths=[64,64]``."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from server.errors import InvalidJobError
from server.job_files.safe_yaml import load_yaml

_MOST_PARTS = 32
"""Of a dotted key: more than any job has, and less than what walks through it can take."""


def parse_changes(words: Iterable[str]) -> dict[str, Any]:
    """Read ``key=value`` words: values as in YAML; an empty one takes the key out.

    Raises:
      InvalidJobError: a word has no ``=``, or a value is no YAML.
    """
    changes: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.strip():
            raise InvalidJobError(
                f"--set must be KEY=VALUE, such as rounds=5 or model.params.widths=[64,64]: got {word!r}"
            )
        try:
            value = load_yaml("the value", text)
        except ValueError as error:
            raise InvalidJobError(
                f"--set {key:.80}: {text!r:.80} is no value: {' '.join(str(error).split())}"
            ) from error
        changes[key.strip()] = value if isinstance(value, str | int | float | list | dict | None) else text
    return changes


def apply_changes(job: Any, changes: Mapping[str, Any]) -> Any:
    """Return a job with keys changed.

    Args:
      job: its JSON value.
      changes: by key, dotted where it is within a part; None takes the key out, so that its default is taken.

    Raises:
      InvalidJobError: a key leads through something that has no keys, or too deep.
    """
    if not changes or not isinstance(job, dict):
        return job
    changed = copy.deepcopy(job)
    for key, value in changes.items():
        *outer, last = key.split(".")
        if len(outer) >= _MOST_PARTS:
            raise InvalidJobError(
                f"cannot set {key:.80}: it has {len(outer) + 1} parts, at most {_MOST_PARTS} are taken"
            )
        part = changed
        for name in outer:
            inner = part.get(name)
            if inner is None:
                inner = part[name] = {}
            if not isinstance(inner, dict):
                raise InvalidJobError(f"cannot set {key}: {name} is {inner!r:.80}, which has no keys")
            part = inner
        if value is None:
            part.pop(last, None)
        else:
            part[last] = value
    return changed

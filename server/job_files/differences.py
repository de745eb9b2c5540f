"""In what two jobs differ: compared as they are validated, so that neither defaults nor spelling count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from server.jobs import JobConfig


@dataclass(frozen=True)
class Difference:
    """A key that two jobs have with different values; None: one has none."""

    key: str
    first: Any
    second: Any


def differences(first: JobConfig, second: JobConfig) -> list[Difference]:
    """Compare two jobs; the keys come in the order of the job file.

    Networks are the same when their specs are, whether one is taken from the zoo or written out. A time is the same
    in any zone.
    """
    one, other = _keys(first), _keys(second)
    names = list(dict.fromkeys([*one, *other]))
    found = [Difference(key, one.get(key), other.get(key)) for key in names if one.get(key) != other.get(key)]
    if first.spec == second.spec:
        found = [difference for difference in found if not difference.key.startswith("model.")]
    if first.starts_at == second.starts_at:
        found = [difference for difference in found if difference.key != "starts_at"]
    return found


def _keys(job: JobConfig) -> dict[str, Any]:
    return dict(_flat("", job.model_dump(mode="json")))


def _flat(prefix: str, part: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in part.items():
        if isinstance(value, dict):
            yield from _flat(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", value

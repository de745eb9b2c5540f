"""A validated job as one would write it: without what follows from the rest."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from bnncore.errors import BitfleetError
from server.jobs import JobConfig, parse_job

_WHOLE = (("model", "spec"), ("device_labels",))
"""Parts that are written with all of their keys or not at all."""


def as_written(job: JobConfig) -> dict[str, Any]:
    """Return the fewest keys of a job from which the same job is validated.

    Every key is tried: it goes when the job is the same without it. So defaults, what a recipe says, and what is worked
    out (the noise of a privacy budget) are left out.
    """
    written: dict[str, Any] = job.model_dump(mode="json")
    wanted = job.to_json()
    for path in list(_paths(written)):
        less = _without(written, path)
        try:
            if parse_job(less).to_json() == wanted:
                written = less
        except BitfleetError:
            continue
    return written


def _paths(part: dict[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the paths of all keys: each before those within it.

    Not those within a network's own description and within labels, of which there may be many and none has a default.
    """
    for key, value in part.items():
        path = (*prefix, key)
        yield path
        if isinstance(value, dict) and path not in _WHOLE:
            yield from _paths(value, path)


def _without(value: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    copied = copy.deepcopy(value)
    part: Any = copied
    for key in path[:-1]:
        part = part.get(key)
        if not isinstance(part, dict):
            return copied  # gone with what it was in
    part.pop(path[-1], None)
    return copied

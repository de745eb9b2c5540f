"""Changes to a spec in JSON form."""

from __future__ import annotations

from typing import Any

__all__ = ["edit"]


def edit(spec: dict[str, Any], path: str, value: Any) -> None:
    """Set one value of a spec, such as ``layers.0.name``, or with ``...`` delete it."""
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    target: Any = spec
    for key in parents:
        target = target[key]
    if value is ...:
        del target[last]
    else:
        target[last] = value

"""What is wrong with a job, in words: at which key, and what is allowed there."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

__all__ = ["JobProblem", "problems_of"]

KeyPath = tuple[str | int, ...]
"""Keys, and places in lists, from the outermost inwards."""


@dataclass(frozen=True)
class JobProblem:
    """One thing that is wrong with a job.

    Attributes:
      path: the key; empty where several keys do not go together.
      words: what is required, and what was found.
    """

    path: KeyPath
    words: str

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.path)) or 'job'}: {self.words}"


def problems_of(error: ValidationError, model: type[BaseModel]) -> tuple[JobProblem, ...]:
    """Put what pydantic found into words.

    Args:
      error: what validating a ``model`` raised.
      model: where keys are looked up that somebody may have meant.
    """
    return tuple(_problem(item["type"], item["loc"], item["msg"], item["input"], model) for item in error.errors())


def _problem(kind: str, path: KeyPath, message: str, found: object, model: type[BaseModel]) -> JobProblem:
    if kind == "extra_forbidden":
        return JobProblem(path, f"there is no such key; {_meant(str(path[-1]), _keys_at(model, path[:-1]))}")
    if kind == "missing":
        return JobProblem(path, "is required, and missing")
    words = message.removeprefix("Value error, ")
    if kind == "string_type" and isinstance(found, bool | int | float):
        words += ", so write it in quotes"
    return JobProblem(path, words if not path else f"{words} (got {found!r:.80})")


def _meant(key: str, keys: list[str]) -> str:
    close = difflib.get_close_matches(key, keys, n=1)
    return f"did you mean {close[0]}?" if close else f"the keys here are {', '.join(sorted(keys))}"


def _keys_at(model: type[BaseModel], path: KeyPath) -> list[str]:
    """Return the keys of the part of a job that a path leads to."""
    for key in path:
        annotation: Any = model.model_fields[str(key)].annotation
        candidates = (annotation, *get_args(annotation))
        model = next(part for part in candidates if isinstance(part, type) and issubclass(part, BaseModel))
    return list(model.model_fields)

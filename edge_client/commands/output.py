"""How commands answer: text for people, JSON where it is asked for."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

__all__ = ["show", "utc"]


def show(facts: Any, text: str, json_path: str | None) -> None:
    """Print an answer.

    Args:
      facts: JSON values.
      text: the same for people.
      json_path: where the facts go; ``-``: standard output; None: the text is printed instead.
    """
    if json_path is None:
        print(text)
    elif json_path == "-":
        print(json.dumps(facts, indent=2))
    else:
        Path(json_path).write_text(json.dumps(facts, indent=2) + "\n")


def utc(at: float) -> str:
    """Write seconds since 1970 as ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))

"""What a check says, and how checks are run so that none of them can hang the others."""

from __future__ import annotations

import enum
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bnncore.errors import BitfleetError

__all__ = ["Check", "Mark", "ask_child", "run_check"]


class Mark(enum.StrEnum):
    """How a check went."""

    OK = "ok"
    NOTE = "note"
    """It works, and the owner may want to know."""
    WRONG = "wrong"
    """The device cannot take part like this."""
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Check:
    """What one check found."""

    name: str
    mark: Mark
    text: str
    advice: str = ""
    """What to do; empty: nothing."""
    facts: dict[str, Any] = field(default_factory=dict)
    """JSON values."""


def run_check(name: str, look: Callable[[], Check], limit_s: float) -> Check:
    """Run one check in a thread that is left behind when it hangs: a name that is looked up, a disk that is dying."""
    found: list[Check] = []

    def work() -> None:
        try:
            found.append(look())
        except (BitfleetError, OSError, ValueError) as error:
            found.append(Check(name, Mark.WRONG, str(error)))

    thread = threading.Thread(target=work, name=f"check {name}", daemon=True)
    thread.start()
    thread.join(limit_s)
    if found:
        return found[0]
    text = f"no answer in {limit_s:g} s" if thread.is_alive() else "the check itself failed; what is printed says why"
    return Check(name, Mark.WRONG, text)


def ask_child(task: str, limit_s: float, *arguments: str) -> dict[str, Any]:
    """Have a child do what needs NumPy and the engine (``doctor.child``); give its answer.

    Raises:
      BitfleetError: it took too long, or ended without an answer.
    """
    command = [sys.executable, "-P", "-m", "edge_client.doctor.child", "--parent", str(os.getpid()), task, *arguments]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=limit_s, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise BitfleetError(f"no answer in {limit_s:g} s") from None
    lines = done.stdout.splitlines()
    if not lines:
        raise BitfleetError(f"its process ended without an answer (exit code {done.returncode}); is memory short?")
    answer: dict[str, Any] = json.loads(lines[-1])
    if "error" in answer:
        raise BitfleetError(answer["error"])
    return answer

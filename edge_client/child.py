"""What the agent's children do first: tie their life to the agent's, and speak to it in lines of JSON.

A child prints its events on its standard output, one JSON object a line. Anything else that a library might print
goes to standard error, which is the agent's own.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, TextIO

__all__ = [
    "BEST_FILE",
    "LOCAL_STATE_FILE",
    "MODEL_FILE",
    "TASK_FILE",
    "UPDATE_FILE",
    "VECTOR_FILE",
    "EventWriter",
    "bind_to_parent",
    "child_parser",
]

TASK_FILE = "task.json"
"""What a trainer is to do, in the task's folder."""

UPDATE_FILE = "update.safetensors"
"""The update's payload, which a trainer leaves there."""

VECTOR_FILE = "vector"
"""What a trainer leaves in the place of a payload where updates are added up under masks: in the clear, never sent."""

MODEL_FILE = "model.safetensors"
"""The task's model, which a trainer leaves there when it made it by steps from an older one."""

LOCAL_STATE_FILE = "local-state.safetensors"
"""What stays on the device when the update is accepted, which a trainer leaves there for the job's next task."""

BEST_FILE = "best.safetensors"
"""The task's model, which a trainer leaves there when it is not worse than the job's best one on the device."""

_PR_SET_PDEATHSIG = 1


def child_parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    """Build the parser of a child: ``--parent PID`` says whose end is also the child's."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--parent", type=int, default=None, metavar="PID", help="end when this process ends")
    return parser


def bind_to_parent(parent: int | None) -> None:
    """Have the kernel kill this process when its parent ends, however it ends.

    Nothing is lost by it: a child leaves files that are complete or absent. The child also offers itself first to
    the out-of-memory killer, so that the agent lives to report it.

    Args:
      parent: the parent's PID; None leaves the process on its own.

    Raises:
      OSError: the kernel refused.
    """
    if parent is None:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides what it means
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if os.getppid() != parent:  # it ended before the kernel was asked
        os.kill(os.getpid(), signal.SIGKILL)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


class EventWriter:
    """Takes standard output for events; later prints of anyone else go to standard error."""

    def __init__(self) -> None:
        self._file: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        sys.stdout = sys.stderr

    def write(self, event: dict[str, Any]) -> None:
        """Write one event and flush it."""
        self._file.write(json.dumps(event) + "\n")
        self._file.flush()

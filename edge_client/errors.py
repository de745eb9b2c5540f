"""Every error that the device's side raises on purpose.

::

    BitfleetError
     ├ ConfigurationError          exit 3
     │  ├ SettingsError              a flag or a variable of the environment
     │  └ StateFolderError           the state folder: in use, of another device, not writable
     ├ UnreachableError            exit 4
     │  └ LinkError                  a call broke or was never answered: trying again may help
     └ TaskError                   a task ends without an update; its text travels to the coordinator
        ├ TaskDeclinedError          the device will not do it
        ├ TaskFailedError            the device tried and could not
        └ ModelMissingError          the trainer cannot make the model itself: it has to be downloaded

A TaskError is of ``bnncore.errors``, since the core trains. Its text is read by a stranger: it holds no path, no
address and no other secret of the device.
"""

from __future__ import annotations

import os
import re

from bnncore.errors import (
    BitfleetError,
    ConfigurationError,
    DataError,
    ModelMissingError,
    TaskDeclinedError,
    TaskError,
    TaskFailedError,
    UnreachableError,
)

__all__ = [
    "LinkError",
    "ModelMissingError",
    "SettingsError",
    "StateFolderError",
    "TaskDeclinedError",
    "TaskError",
    "TaskFailedError",
    "public_reason",
]

MAX_REASON_CHARS = 300
"""Longest reason sent to a coordinator."""

_PATH = re.compile(r"(?<![\w.])~?/[^\s'\",;)]+")


class SettingsError(ConfigurationError):
    """A flag or a variable of the environment is missing or makes no sense."""


class StateFolderError(ConfigurationError):
    """The state folder is used by another agent, belongs to another device, or cannot be written."""


class LinkError(UnreachableError):
    """A call to the coordinator broke, or was not answered in time; the same call may succeed later.

    Attributes:
      is_coordinators_fault: the coordinator answered, with an error of its own, so the link itself is fine.
    """

    def __init__(self, message: str, *, is_coordinators_fault: bool = False) -> None:
        super().__init__(message)
        self.is_coordinators_fault = is_coordinators_fault


def public_reason(error: BaseException) -> str:
    """Say in one line what went wrong, without anything that belongs to the device alone.

    File names are left out: an ``OSError`` gives the system's word for it, an error of the user's data only the fact.
    """
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno else type(error).__name__
    if isinstance(error, DataError):
        return "the device's data cannot be read; its own log says why"
    if not isinstance(error, BitfleetError):
        return f"unexpected {type(error).__name__}; the device's own log says more"
    one_line = " ".join(str(error).split())
    return _PATH.sub("<path>", one_line)[:MAX_REASON_CHARS]

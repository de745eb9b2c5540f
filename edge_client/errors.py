"""Every error that the device's side raises on purpose.

::

    BitfleetError
     ├ ConfigurationError          exit 3
     │  ├ SettingsError              a flag or a variable of the environment
     │  ├ PolicyError                the owner's policy file
     │  ├ StateFolderError           the state folder: in use, of another device, not writable
     │  └ IdentityRefusedError       the coordinator does not take this device: token, certificate, name
     ├ UnreachableError            exit 4
     │  ├ LinkError                  a call broke or was never answered: trying again may help
     │  └ ClockError                 this device's clock is wrong, so no certificate can be checked
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
import time

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
    "ClockError",
    "IdentityRefusedError",
    "LinkError",
    "ModelMissingError",
    "PolicyError",
    "SettingsError",
    "StateFolderError",
    "TaskDeclinedError",
    "TaskError",
    "TaskFailedError",
    "one_line",
    "public_reason",
]

MAX_REASON_CHARS = 300
"""Longest reason sent to a coordinator."""

_PATH = re.compile(r"(?<![\w.])~?/[^\s'\",;)]+")


class SettingsError(ConfigurationError):
    """A flag or a variable of the environment is missing or makes no sense."""


class PolicyError(ConfigurationError):
    """The owner's policy file cannot be read, or holds what is no rule."""


class StateFolderError(ConfigurationError):
    """The state folder is used by another agent, belongs to another device, or cannot be written."""


class IdentityRefusedError(ConfigurationError):
    """The coordinator does not take this device: its token, its certificate or its name."""


class ClockError(UnreachableError):
    """This device's clock is wrong.

    Attributes:
      offset_s: seconds by which it is ahead of the coordinator's.
    """

    def __init__(self, offset_s: float) -> None:
        now = time.time()
        here, there = (time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(at)) for at in (now, now - offset_s))
        super().__init__(
            f"clock wrong: this device says {here}, the coordinator {there}. Its certificates cannot be checked before "
            "the time is right; wait for time synchronisation, or set the clock"
        )
        self.offset_s = offset_s


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
    return _PATH.sub("<path>", one_line(str(error)))


def one_line(text: str) -> str:
    """Cut a stranger's words for a log or a ledger: one line of printable characters, none too long."""
    printable = "".join(character if character.isprintable() else " " for character in text[: 4 * MAX_REASON_CHARS])
    return " ".join(printable.split())[:MAX_REASON_CHARS]

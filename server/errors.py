"""What can go wrong in the coordinator, and how each error is told over HTTP and over gRPC.

::

    BitfleetError
     └ ServerError
        ├ InvalidJobError          a job file or request that cannot run here
        ├ InvalidRequestError      a malformed message of a device
        ├ UpdateRejected           an update that is not valid: answered by a status, sending it again will not help
        ├ NotFoundError            no such job, round, model version or payload
        ├ ConflictError            the thing exists, but not in a state that allows this
        ├ OffsetError              an offset beyond the end of a payload
        ├ IncompatibleDeviceError  no protocol number that both sides speak
        ├ ReplacedError            a newer stream of the same device took over
        ├ SlowDeviceError          a device that does not read or does not send
        └ NotReadyError            stopping, or the disk or database refused: try again

A domain error never mentions a transport: the table below is the only place that does.
"""

from __future__ import annotations

from bnncore.errors import BitfleetError


class ServerError(BitfleetError):
    """Base of the coordinator's own errors."""


class InvalidJobError(ServerError):
    """A job's description is wrong: what was required, what was received."""

    exit_code = 3


class InvalidRequestError(ServerError):
    """A device's message is malformed."""


class UpdateRejected(ServerError):
    """An update is not valid; the message is the reason that the device is told."""


class NotFoundError(ServerError):
    """No such job, round, model version or payload."""


class ConflictError(ServerError):
    """The object is in a state that does not allow the request."""


class OffsetError(ServerError):
    """An offset lies beyond the end of a payload."""


class IncompatibleDeviceError(ServerError):
    """Device and coordinator have no protocol number in common."""

    exit_code = 5


class ReplacedError(ServerError):
    """The same device has opened a newer stream."""


class SlowDeviceError(ServerError):
    """A device was silent, or did not read what was sent to it, for too long."""


class NotReadyError(ServerError):
    """The coordinator cannot do this now; the same request may succeed later."""


STATUS_OF_ERROR: dict[type[ServerError], tuple[int, str]] = {
    InvalidJobError: (422, "INVALID_ARGUMENT"),
    InvalidRequestError: (400, "INVALID_ARGUMENT"),
    UpdateRejected: (422, "INVALID_ARGUMENT"),
    NotFoundError: (404, "NOT_FOUND"),
    ConflictError: (409, "FAILED_PRECONDITION"),
    OffsetError: (416, "OUT_OF_RANGE"),
    IncompatibleDeviceError: (426, "FAILED_PRECONDITION"),
    ReplacedError: (409, "ABORTED"),
    SlowDeviceError: (408, "DEADLINE_EXCEEDED"),
    NotReadyError: (503, "UNAVAILABLE"),
}
"""The one table: domain error -> (HTTP status, name of the gRPC status code)."""


def status_of(error: BaseException) -> tuple[int, str]:
    """Return (HTTP status, gRPC code name) of an error; anything outside the table is the coordinator's own fault."""
    for kind in type(error).__mro__:
        if kind in STATUS_OF_ERROR:
            return STATUS_OF_ERROR[kind]
    return 500, "INTERNAL"

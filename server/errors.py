"""What can go wrong in the coordinator, and how each error is told over HTTP and over gRPC.

::

    BitfleetError
     └ ServerError
        ├ InvalidJobError          a job file or request that cannot run here
        ├ InvalidRequestError      a malformed message of a device
        ├ UpdateRejected           an update that is not valid: answered by a status, sending it again will not help
        ├ UnauthenticatedError     who it is was not shown: no key, no certificate, a token that is not good
        ├ ForbiddenError           it is known who it is, and that one may not do this
        ├ InvalidCursorError       a list's cursor that no page of it gave
        ├ TooManyRequestsError     more than are taken from there in a minute
        ├ NotFoundError            no such job, round, model version or payload
        │  └ PayloadLostError      there was one, and the disk has lost or damaged it
        ├ ConflictError            the thing exists, but not in a state that allows this
        ├ OffsetError              an offset beyond the end of a payload
        ├ IncompatibleDeviceError  no protocol number that both sides speak
        ├ ReplacedError            a newer stream of the same device took over
        ├ SlowDeviceError          a device that does not read or does not send
        └ NotReadyError            stopping, or the disk or database refused: try again
           ├ NoRoomError           the disk's quota is used up, or too little is free
           └ LeaseLostError        another replica plays the rounds now

A domain error never mentions a transport: the table below is the only place that does.
"""

from __future__ import annotations

from collections.abc import Sequence

from bnncore.errors import BitfleetError
from server.job_problems import JobProblem


class ServerError(BitfleetError):
    """Base of the coordinator's own errors."""


class InvalidJobError(ServerError):
    """A job's description is wrong: what was required, what was received.

    Attributes:
      problems: the same one by one, where it is about single keys.
    """

    exit_code = 3

    def __init__(self, message: str, problems: Sequence[JobProblem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class InvalidRequestError(ServerError):
    """A device's message is malformed."""


class InvalidCursorError(ServerError):
    """A list is asked for from where no page of it ends."""

    def __init__(self, after: str) -> None:
        super().__init__(f"after={after[:80]!r} is no cursor: take it from the Link header of the page before")


class UpdateRejected(ServerError):
    """An update is not valid; the message is the reason that the device is told."""


class UnauthenticatedError(ServerError):
    """Who asks was not shown: no key or certificate, or one that is not good (any more)."""


class ForbiddenError(ServerError):
    """Who asks is known, and may not do this."""


class TooManyRequestsError(ServerError):
    """More requests than are taken in a minute."""


class NotFoundError(ServerError):
    """No such job, round, model version or payload."""


class PayloadLostError(NotFoundError):
    """A payload that a row names is missing on the disk, or its bytes are not those that its digest names."""


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


class NoRoomError(NotReadyError):
    """There is no room on the disk for what was to be written."""


class LeaseLostError(NotReadyError):
    """Another replica plays the rounds now; what this one was about to write was not written."""


STATUS_OF_ERROR: dict[type[ServerError], tuple[int, str]] = {
    InvalidJobError: (422, "INVALID_ARGUMENT"),
    InvalidRequestError: (400, "INVALID_ARGUMENT"),
    InvalidCursorError: (422, "INVALID_ARGUMENT"),
    UpdateRejected: (422, "INVALID_ARGUMENT"),
    UnauthenticatedError: (401, "UNAUTHENTICATED"),
    ForbiddenError: (403, "PERMISSION_DENIED"),
    TooManyRequestsError: (429, "RESOURCE_EXHAUSTED"),
    NotFoundError: (404, "NOT_FOUND"),
    PayloadLostError: (404, "NOT_FOUND"),
    ConflictError: (409, "FAILED_PRECONDITION"),
    OffsetError: (416, "OUT_OF_RANGE"),
    IncompatibleDeviceError: (426, "FAILED_PRECONDITION"),
    ReplacedError: (409, "ABORTED"),
    SlowDeviceError: (408, "DEADLINE_EXCEEDED"),
    NotReadyError: (503, "UNAVAILABLE"),
    NoRoomError: (507, "UNAVAILABLE"),
    LeaseLostError: (503, "UNAVAILABLE"),
}
"""The one table: domain error -> (HTTP status, name of the gRPC status code)."""


def status_of(error: BaseException) -> tuple[int, str]:
    """Return (HTTP status, gRPC code name) of an error; anything outside the table is the coordinator's own fault."""
    for kind in type(error).__mro__:
        if kind in STATUS_OF_ERROR:
            return STATUS_OF_ERROR[kind]
    return 500, "INTERNAL"

"""Which errors say that the disk or the database takes nothing now, as opposed to a mistake in the program.

A disk that is full or read-only, a card that was pulled, a database server that restarts: whoever meets one of these
waits, since the same call succeeds once an operator has mended it.
"""

from __future__ import annotations

import errno

_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.ENOMEM, errno.EMFILE, errno.ENFILE}


class StoreAwayError(OSError):
    """The object store does not answer, or refuses: the same request may succeed later."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EIO, message)


def is_refusal(error: BaseException) -> bool:
    """Say whether an error, or one that it came from, is the disk's or the database's refusal."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _REFUSALS:
            return True
        # By its name in PEP 249, which every driver and SQLAlchemy use: full, read-only, gone.
        if any(kind.__name__ == "OperationalError" for kind in type(seen).__mro__):
            return True
        seen = seen.__cause__ or seen.__context__
    return False

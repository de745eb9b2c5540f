"""Which replica may do what one does for all: a lease with a fence.

A replica that was stopped, or cut off, and comes back may still believe that it holds the lease. So every transaction
in which the holder writes begins with a look at the fence, which each new holder makes one higher: the transaction of
an earlier one ends there. The row is locked for it, so a new holder waits for those that are under way.
"""

from __future__ import annotations

from sqlalchemy import Connection, select

from server.errors import LeaseLostError
from server.storage.tables import leases

ROUNDS = "rounds"
"""The lease of who plays the rounds."""


def check_fence(connection: Connection, fence: int) -> None:
    """Begin a transaction of the rounds' lead.

    Raises:
      LeaseLostError: the fence is another one's.
    """
    row = select(leases.c.fence, leases.c.holder).where(leases.c.name == ROUNDS).with_for_update(read=True)
    found = connection.execute(row).one_or_none()
    if found is None or found.fence != fence:
        holder = "nobody" if found is None else f"replica {found.holder}"
        raise LeaseLostError(f"the rounds are played by {holder}, not by this replica; try again in a moment")

"""What all replicas over a database must have in common: where payloads are, and whose certificates they believe.

The lease's row says what the one has that led last. Whoever has something else is no replica of that fleet while any of
its replicas is there: it may neither lead nor follow. When all are gone, the payloads may have moved, or the
authority may be a new one: then the next lead's word is in the row.
"""

from __future__ import annotations

import asyncio
import logging
import time

from bnncore.errors import ConfigurationError
from server.errors import NotReadyError
from server.replicas.bus import Bus
from server.replicas.members import CONNECTIONS, Member, Members
from server.replicas.names import application_name
from server.storage.leases import ROUNDS

_log = logging.getLogger(__name__)

_HEARD_S = 5.0
"""Within which replicas that are there have answered the first beat of a new one."""
_LOOK_S = 0.2

_ROW = f"SELECT holder, store, authority FROM leases WHERE name = '{ROUNDS}'"


async def check_terms(bus: Bus, members: Members, own: Member) -> None:
    """See whether this replica may work with those that are there; waits while the database does not answer.

    Raises:
      ConfigurationError: it has another store or another authority.
    """
    began_at = time.monotonic()
    while True:
        try:
            rows = await bus.query(_ROW)
            if not rows or rows[0][0] == own.replica_id:
                return
            lead = Member(rows[0][0], store=rows[0][1], authority=own.authority if rows[0][2] is None else rows[0][2])
            problem = _why_not(own, lead)
            if not problem:
                return
            ((connections,),) = await bus.query(CONNECTIONS, (application_name(lead.replica_id),))
        except NotReadyError as error:
            _log.warning("event=terms_not_read next_try_s=%g reason=%r", _LOOK_S, str(error))
        else:
            others = [member for name, member in members.alive.items() if name != own.replica_id]
            is_heard = any(_terms(lead) == _terms(member) for member in others)
            has_waited = time.monotonic() - began_at > _HEARD_S
            if is_heard or (connections and has_waited):  # of one that was just killed they are gone by then
                raise ConfigurationError(problem)
            if not connections and (has_waited or not lead.store):  # with a folder of its own it was alone
                if _terms(lead) != _terms(own):
                    _log.warning("event=terms_changed before=%s now=%s", _terms(lead), _terms(own))
                return
        await asyncio.sleep(_LOOK_S)


def _terms(member: Member) -> tuple[str, str]:
    return member.store, member.authority


def _why_not(own: Member, lead: Member) -> str:
    if not lead.store or lead.store != own.store:
        theirs = f"has its payloads at {lead.store}" if lead.store else "has its payloads in a folder of its own"
        here = f"at {own.store}" if own.store else "in the state folder"
        return (
            f"replica {lead.replica_id} leads over this database and {theirs}, this one would have them {here}: give "
            "all replicas the same --blobs s3://...; where payloads have moved, stop all replicas before one starts"
        )
    if lead.authority != own.authority:
        theirs, here = (
            f"has the authority {of}" if of else "is served --insecure" for of in (lead.authority, own.authority)
        )
        return (
            f"replica {lead.replica_id} leads over this database and {theirs}, this one {here}: devices of one would "
            "be strangers to the other. Give all replicas the same --identity folder, or serve all --insecure; where "
            "the authority is a new one, stop all replicas before one starts"
        )
    return ""

"""The JSON objects of the coordinator at a glance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.api.privacy_view import PrivacyView
from server.api.view import View
from server.api.views import ExchangeView

if TYPE_CHECKING:
    from server.replicas.replica import Replica


class RunningJobView(View):
    """A running job and the round that it is at."""

    id: str
    name: str
    rounds_committed: int
    rounds_total: int
    round: int | None
    """The open one; null between rounds."""
    state: str | None
    devices: int
    """Its members."""
    accepted: int
    queued: int
    """Members whose device is at another job's task first."""
    exchange: ExchangeView | None
    """While the round's updates are added up under masks."""
    overhead_s: float | None
    """Median over its latest rounds; see ``RoundView``."""
    privacy: PrivacyView | None
    """Null where it asks for none."""
    waits_for: str
    """What keeps a round from being opened, such as room on the disk; empty: nothing."""


class DiskView(View):
    """The payloads' disk."""

    used_bytes: int
    """Of payloads."""
    held_bytes: int
    """Promised to what is being written."""
    quota_bytes: int | None
    free_bytes: int | None
    """On their file system; null in an object store."""
    refusals: int
    """How often there was no room, since the start."""


class MemberView(View):
    """A coordinator over the database."""

    id: str
    """New at each start."""
    is_lead: bool
    """Whether it works on the jobs."""
    streams: int
    """Devices' streams that are open there."""
    version: str


class ReplicaView(View):
    """Which one of several coordinators over one database answers, and who the others are."""

    id: str
    is_lead: bool
    lead: str | None
    """The one that works on the jobs; null while there is none, and what it alone knows is left out."""
    alive: list[MemberView]
    """By id; the one that answers is among them."""

    @classmethod
    def of(cls, replica: Replica) -> ReplicaView:
        """Build the view."""
        lead = replica.members.lead_id
        members = sorted(replica.members.alive.items())
        return cls(
            id=replica.id,
            is_lead=lead == replica.id,
            lead=lead,
            alive=[
                MemberView(id=name, is_lead=name == lead, streams=member.num_streams, version=member.version)
                for name, member in members
            ],
        )


class StatusView(View):
    """The coordinator at a glance."""

    version: str
    started_at: str
    now: str
    running: list[RunningJobView]
    """In the order in which they began."""
    jobs: dict[str, int]
    devices_connected: int
    devices_known: int
    device_states: dict[str, int]
    """Of the connected ones."""
    down_bytes: int
    up_bytes: int
    round_overhead_s: float | None
    """Median over the latest rounds, of all jobs; see ``RoundView``."""
    disk: DiskView
    replica: ReplicaView | None = None
    """Null where there can be one coordinator only."""

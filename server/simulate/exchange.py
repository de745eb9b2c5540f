"""A simulated device's side of an exchange: real keys, shares and masks, or the same sum without them.

As on a real device what a step needs is on disk before its message is sent, so a simulation that was stopped goes on.
"""

from __future__ import annotations

from typing import Protocol

from bitfleet.v1 import fleet_pb2 as pb
from bnncore.codec import PayloadKind, payload_digest
from bnncore.federated import SummedUpdates
from bnncore.secure.messages import masked_bytes
from bnncore.secure.participant import Participant
from bnncore.secure.parts import WeightForm
from bnncore.secure.privacy import Mechanism, Privacy
from bnncore.secure.ring import RingVector
from bnncore.secure.terms import Context, ExchangeRules, Trust, exchange_digest
from bnncore.secure.values import ValueForm, Vector
from bnncore.spec import ModelSpec
from server.simulate.plain_sum import WITHOUT_MASKS


def context_of(task: pb.Task) -> Context:
    """Name the exchange that a task asks for."""
    return Context(task.job_id, task.round_number, task.secure.attempt, task.model_digest)


def rules_of(task: pb.Task) -> ExchangeRules:
    """Read what a task promises to the members of its exchange."""
    return ExchangeRules(task.secure.min_members, task.secure.threshold, task.secure.degree)


def summed_of(task: pb.Task) -> SummedUpdates | None:
    """Say how a task's update is told as whole numbers; None: it is told as ever."""
    if not task.HasField("secure"):
        return None
    weights: WeightForm = "signs" if task.secure.weights == "signs" else "fixed"
    return SummedUpdates(weights, task.secure.clip, task.secure.scales, _privacy_of(task.secure))


def _privacy_of(secure: pb.SecureAggregation) -> Privacy | None:
    if not secure.HasField("privacy"):
        return None
    told = secure.privacy
    mechanism: Mechanism = "distributed" if told.mechanism == "distributed" else "central"
    return Privacy(mechanism, told.noise_multiplier, secure.min_members, told.clip)


def form_of(task: pb.Task) -> ValueForm:
    """Give the form of a task's vector."""
    summed = summed_of(task)
    assert summed is not None
    kind: PayloadKind = "statistics" if task.training.local_steps == 0 else "update"
    return summed.form(ModelSpec.from_json(task.spec_json), kind, frozenset(task.local_tensors))


class Member(Protocol):
    """A device in an exchange."""

    @property
    def keys(self) -> bytes:
        """What it sends first."""

    def answer(self, order: pb.ExchangeOrder, vector: bytes) -> bytes:
        """Take a step; ``vector`` is what its training left."""

    def to_bytes(self) -> bytes:
        """Write where it is, to go on from there."""


class MaskedMember:
    """One with keys, shares and masks."""

    def __init__(self, task: pb.Task, participant: Participant, trust: Trust | None = None) -> None:
        self._task = task
        self._participant = participant
        self._trust = trust

    @classmethod
    def begin(cls, task: pb.Task, device_id: str) -> MaskedMember:
        """Enter a task's exchange."""
        return cls(task, Participant.begin(context_of(task), rules_of(task), device_id, None))

    @classmethod
    def resume(cls, task: pb.Task, data: bytes) -> MaskedMember:
        """Go on with it."""
        return cls(task, Participant.from_bytes(data))

    @property
    def keys(self) -> bytes:
        """See ``Member``."""
        return self._participant.keys

    def answer(self, order: pb.ExchangeOrder, vector: bytes) -> bytes:
        """See ``Member``."""
        peers = {peer.device_id: peer for peer in order.peers}
        match order.step:
            case pb.EXCHANGE_STEP_SHARES:
                return self._participant.share(
                    {name: peer.keys for name, peer in peers.items()},
                    order.num_members,
                    self._trust,
                    order.graph_seed,
                    {name: peer.position for name, peer in peers.items()},
                )
            case pb.EXCHANGE_STEP_MASKED:
                ring = ring_of(self._task, vector, order.num_members)
                return self._participant.mask({name: peer.sealed for name, peer in peers.items()}, ring)
            case _:
                return self._participant.reveal({name: peer.survived for name, peer in peers.items()})

    def to_bytes(self) -> bytes:
        """See ``Member``."""
        return self._participant.to_bytes()


class PlainMember:
    """One whose vector is added up without masks."""

    def __init__(self, task: pb.Task) -> None:
        self._task = task

    @property
    def keys(self) -> bytes:
        """See ``Member``."""
        return WITHOUT_MASKS

    def answer(self, order: pb.ExchangeOrder, vector: bytes) -> bytes:
        """See ``Member``."""
        if order.step != pb.EXCHANGE_STEP_MASKED:
            return WITHOUT_MASKS
        ring = ring_of(self._task, vector, order.num_members)
        return masked_bytes(exchange_digest(context_of(self._task), rules_of(self._task)), ring.data.data)

    def to_bytes(self) -> bytes:
        """See ``Member``."""
        return WITHOUT_MASKS


def ring_of(task: pb.Task, vector: bytes, num_members: int) -> RingVector:
    """Write what a training left into the ring of its exchange."""
    form = form_of(task)
    return Vector.from_bytes(form, vector).to_ring(form.layout(num_members))


def begin_member(task: pb.Task, device_id: str, *, has_masks: bool) -> Member:
    """Enter a task's exchange."""
    return MaskedMember.begin(task, device_id) if has_masks else PlainMember(task)


def resume_member(task: pb.Task, state: bytes, *, has_masks: bool) -> Member:
    """Go on with an exchange from what ``to_bytes`` gave."""
    return MaskedMember.resume(task, state) if has_masks else PlainMember(task)


def step_header(update: pb.UpdateHeader, step: pb.ExchangeStep, attempt: int, payload: bytes) -> pb.UpdateHeader:
    """Make the header of a step from that of the update itself, without what says something of the data."""
    header = pb.UpdateHeader()
    header.CopyFrom(update)
    header.MergeFrom(pb.UpdateHeader(step=step, attempt=attempt, num_examples=1))
    header.update_digest, header.total_bytes = payload_digest(payload), len(payload)
    for name in ("loss", "accuracy", "validation_examples", "validation_correct", "validation_loss"):
        header.metrics.ClearField(name)
    return header

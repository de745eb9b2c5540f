"""A scripted device of a job with secure aggregation: real keys, shares and masks over a vector that a test chooses."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

from bitfleet.v1 import fleet_pb2 as pb
from bnncore.codec import SignTensor
from bnncore.codec.difference import statistic_bounds
from bnncore.secure import Participant, Signer, Trust
from bnncore.secure.metrics import Metrics
from bnncore.secure.values import Told, ValueForm, ValueSum, Vector
from server.simulate.exchange import MaskedMember, context_of, form_of, rules_of
from tests.bnncore.random_differences import random_signs
from tests.server.scripted import ScriptedDevice

KEYS, SHARES, MASKED, REVEAL = (
    pb.EXCHANGE_STEP_KEYS, pb.EXCHANGE_STEP_SHARES, pb.EXCHANGE_STEP_MASKED, pb.EXCHANGE_STEP_REVEAL
)  # fmt: skip


def random_vector(form: ValueForm, seed: int) -> Vector:
    """What a device may have learnt: a function of the seed."""
    generator = np.random.default_rng(seed)
    bounds = statistic_bounds(form.spec)
    told: dict[str, Any] = {}
    for tensor in form.spec.tensors:
        if tensor.role == "weight":
            signs: SignTensor = random_signs(tensor.shape, seed)
            steps = generator.integers(-form.clip, form.clip + 1, tensor.shape, dtype=np.int16)
            told[tensor.name] = signs if form.weights == "signs" else steps
        else:
            values = generator.uniform(0.1, 1, tensor.shape).astype(np.float32)
            told[tensor.name] = values * bounds.get(tensor.name, 100) if tensor.is_statistic else values
    metrics = Metrics(float(generator.gamma(1)), 0.5, 40, int(generator.integers(40)), float(generator.gamma(1)))
    ready: Told = told
    return form.encode(ready, metrics)


def plain_sum(vectors: Sequence[Vector]) -> ValueSum:
    """Add numbers up as they are, without a ring: the sum that must come out from under the masks."""
    form, sums = vectors[0].form, {}
    for part in form.parts:
        arrays = [vector.values[part.name] for vector in vectors]
        if part.is_bits:
            arrays = [np.unpackbits(array, bitorder="little") for array in arrays]
        sums[part.name] = np.sum([array.astype(np.int64) for array in arrays], axis=0)
    return ValueSum(form, len(vectors), sums)


class Member:
    """One device in the exchanges of a job.

    Attributes:
      device: its end of the wire.
      task: the newest one that it joined.
      vectors: what it told, by round.
    """

    def __init__(self, device: ScriptedDevice, *, signer: Signer | None = None, trust: Trust | None = None) -> None:
        self.device = device
        self.task = pb.Task()
        self.vectors: dict[int, Vector] = {}
        self._signer = signer
        self._trust = trust
        self._participant: Participant | None = None

    @property
    def participant(self) -> Participant:
        assert self._participant is not None
        return self._participant

    async def join(self, task: pb.Task | None = None) -> pb.SubmitUpdateResponse:
        """Take a task, the next one that comes, and send keys for it: new ones for every attempt, of one vector."""
        self.task = task = task or await self.device.next_task()
        name = self.device.device_id
        self._participant = Participant.begin(context_of(task), rules_of(task), name, self._signer)
        seed = int.from_bytes(f"{task.round_number}/{name}".encode(), "little") % 2**32
        self.vectors.setdefault(task.round_number, random_vector(form_of(task), seed))
        return await self.send(KEYS, self.participant.keys)

    async def order(self) -> pb.ExchangeOrder:
        """Wait for the next order."""
        while True:
            response = await self.device.next_event()
            if response.HasField("exchange"):
                return response.exchange

    def payload(self, order: pb.ExchangeOrder) -> bytes:
        """Do a step."""
        member = MaskedMember(self.task, self.participant, self._trust)
        return member.answer(order, self.vectors[self.task.round_number].to_bytes())

    async def take(self, step: pb.ExchangeStep | None = None) -> pb.SubmitUpdateResponse:
        """Take the step that is ordered next, which is to be this one."""
        order = await self.order()
        assert step is None or order.step == step, order
        return await self.send(order.step, self.payload(order), attempt=order.attempt)

    async def send(self, step: pb.ExchangeStep, payload: bytes, **changes: Any) -> pb.SubmitUpdateResponse:
        """Send a step; ``changes`` replace fields of its header."""
        fields = {"step": step, "attempt": self.task.secure.attempt, "num_examples": 1, **changes}
        return await self.device.submit(self.task, payload, chunk_bytes=1000, **fields)

    async def work(self, rounds: int) -> None:
        """Take part in so many rounds, as a good device does."""
        for _ in range(rounds):
            answers = [await self.join()]
            answers += [await self.take(step) for step in (SHARES, MASKED, REVEAL)]
            for answer in answers:
                assert answer.status in (pb.SUBMIT_STATUS_ACCEPTED, pb.SUBMIT_STATUS_DUPLICATE), answer


async def all_join(members: Sequence[Member]) -> None:
    answers = await asyncio.gather(*(member.join() for member in members))
    assert {answer.status for answer in answers} == {pb.SUBMIT_STATUS_ACCEPTED}, answers


async def all_take(members: Sequence[Member], step: pb.ExchangeStep) -> None:
    answers = await asyncio.gather(*(member.take(step) for member in members))
    assert {answer.status for answer in answers} <= {pb.SUBMIT_STATUS_ACCEPTED, pb.SUBMIT_STATUS_DUPLICATE}, answers

"""The rest of a secure sum for one real device: its neighbours, and the coordinator's arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from bitfleet.v1 import fleet_pb2 as pb
from bnncore.secure.combiner import Combiner
from bnncore.secure.participant import Participant
from bnncore.secure.values import ValueSum, Vector
from server.simulate.exchange import context_of, form_of, rules_of
from tests.edge_client.wire import Coordinator, make_task

KEYS, SHARES = pb.EXCHANGE_STEP_KEYS, pb.EXCHANGE_STEP_SHARES
MASKED, REVEAL = pb.EXCHANGE_STEP_MASKED, pb.EXCHANGE_STEP_REVEAL
DEVICE = "bird-1"
NEIGHBOURS = ("cat-1", "dog-1", "emu-1")


def secure_task(
    number: int = 1, *, weights: Literal["signs", "fixed"] = "fixed", attempt: int = 1, steps: int = 20
) -> pb.Task:
    """A task whose updates are added up under masks."""
    task, _ = make_task(number, steps=steps)
    task.up_codec = "sign" if weights == "signs" else "int8"
    task.training.statistics_batches = 2
    task.secure.attempt, task.secure.min_members, task.secure.threshold = attempt, 3, 2 / 3
    task.secure.weights, task.secure.clip = weights, 15
    return task


def again(task: pb.Task) -> pb.Task:
    """The same task in the next attempt."""
    copy = pb.Task()
    copy.CopyFrom(task)
    copy.secure.attempt += 1
    return copy


class Cohort:
    """One attempt: the neighbours are real participants in this process, whose vectors are the device's own.

    Args:
      task: what is added up.
      device_keys: the device's KEYS.
      vector: what the device has learnt, as it lies in its folder.
    """

    def __init__(self, task: pb.Task, device_keys: bytes, vector: bytes) -> None:
        context, rules = context_of(task), rules_of(task)
        self.form = form_of(task)
        self.vector = Vector.from_bytes(self.form, vector)
        self.task = task
        self.neighbours = {name: Participant.begin(context, rules, name, None) for name in NEIGHBOURS}
        self.keys = {DEVICE: device_keys, **{name: each.keys for name, each in self.neighbours.items()}}
        self.layout = self.form.layout(len(self.keys))
        self.combiner = Combiner(context, rules, self.layout, self.keys)

    def shares_order(self) -> pb.ExchangeOrder:
        order = self._order(SHARES)
        for name, keys in self.combiner.keys_for(DEVICE).items():
            order.peers.add(device_id=name, keys=keys)
        return order

    def masked_order(self, shares: bytes) -> pb.ExchangeOrder:
        """Take the device's SHARES in, and everybody's, and ask for the masked update."""
        self.combiner.take_shares(DEVICE, shares)
        for name, each in self.neighbours.items():
            self.combiner.take_shares(name, each.share(self.combiner.keys_for(name), len(self.keys), None))
        self.combiner.start_masking()
        order = self._order(MASKED)
        for name, sealed in self.combiner.sealed_for(DEVICE).items():
            order.peers.add(device_id=name, sealed=sealed)
        return order

    def reveal_order(self, masked: bytes, lost: tuple[str, ...] = ()) -> pb.ExchangeOrder:
        """Take the device's MASKED in, and everybody's but that of the lost, and ask for what takes the masks off."""
        self.combiner.take_masked(DEVICE, masked)
        for name, each in self.neighbours.items():
            ring = self.vector.to_ring(self.layout)
            message = each.mask(self.combiner.sealed_for(name), ring)
            if name not in lost:
                self.combiner.take_masked(name, message)
        self.combiner.start_reveal()
        return self.reveal_as(self.combiner.survived_for(DEVICE))

    def reveal_as(self, survived: Mapping[str, bool]) -> pb.ExchangeOrder:
        """Ask for what takes the masks off, whoever is said to have survived."""
        order = self._order(REVEAL)
        for name, came in survived.items():
            order.peers.add(device_id=name, survived=came)
        return order

    def finish(self, reveal: bytes) -> ValueSum:
        """Take the device's REVEAL in, and everybody's, and give the sum."""
        self.combiner.take_reveal(DEVICE, reveal)
        for name in self.combiner.survivors - {DEVICE}:
            self.combiner.take_reveal(name, self.neighbours[name].reveal(self.combiner.survived_for(name)))
        return self.form.decode_sum(self.combiner.finish(), len(self.combiner.survivors))

    def plain_sum(self, members: int) -> ValueSum:
        """What adding up so many vectors in the clear gives."""
        ring = self.vector.to_ring(self.layout)
        for _ in range(members - 1):
            ring.add(self.vector.to_ring(self.layout))
        return self.form.decode_sum(ring, members)

    def _order(self, step: pb.ExchangeStep) -> pb.ExchangeOrder:
        return pb.ExchangeOrder(
            task_id=self.task.task_id, attempt=self.task.secure.attempt, step=step, num_members=len(self.keys)
        )


async def came(coordinator: Coordinator, step: pb.ExchangeStep, attempt: int = 1) -> bytes:
    """Wait for a step's payload."""
    await coordinator.until(lambda: coordinator.steps(step, attempt))
    return coordinator.steps(step, attempt)[0]

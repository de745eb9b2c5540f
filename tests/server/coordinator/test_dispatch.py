"""The dispatcher: one task at a time for each device, in the order of asking."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from server.coordinator.dispatch import Dispatcher
from server.coordinator.messages import CancelOrder, Conditions, DeviceHello, ExchangeOrder, Heartbeat, TaskOrder
from server.coordinator.sessions import Fleet, LocalSession
from tests.patience import patiently


def order_of(job_id: str, deadline_at: float) -> TaskOrder:
    return TaskOrder(
        task_id=f"{job_id}.r1.d", job_id=job_id, round_number=1, model_digest="", model_bytes=0, initial_seed=0,
        spec_json="", preset="bitfleet", optimizer="", batch_size=1, local_steps=1, step_scale=1.0, seed=0,
        down_codec="int8", up_codec="int8", classes=(), deadline_at=deadline_at,
    )  # fmt: skip


@dataclass
class Source:
    """A round that writes down what it is told."""

    job_id: str
    time_s: float = 1000.0
    begun: int = 0
    queued: int = 0
    given_up: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self, device_id: str) -> TaskOrder:
        self.begun += 1
        return order_of(self.job_id, time.monotonic() + self.time_s)

    def queue(self, device_id: str) -> None:
        self.queued += 1

    def give_up(self, device_id: str) -> None:
        self.given_up.set()


class Bench:
    """A dispatcher over a fleet of one device, "d"."""

    def __init__(self) -> None:
        self.fleet = Fleet(heartbeat_interval_s=5.0, clock=time.monotonic)
        self.dispatcher = Dispatcher(self.fleet, time.monotonic)

    def connect(self) -> LocalSession:
        return self.fleet.connect(DeviceHello("d", "", ("zero",), (4, 4), 40))

    async def told(self, session: LocalSession) -> list[str]:
        """Return what the device was sent: jobs whose task it was to begin, and cancelled tasks with a minus."""
        sent = []
        while not session._orders.empty():
            order = await session.next_order()
            assert not isinstance(order, ExchangeOrder)
            sent.append(f"-{order.task_id[0]}" if isinstance(order, CancelOrder) else order.job_id)
        return sent


async def test_a_device_has_one_task_at_a_time_in_the_order_of_asking() -> None:
    bench, a, b, c = Bench(), Source("a"), Source("b"), Source("c")
    session = bench.connect()

    for source in (a, b, c):
        bench.dispatcher.ask(source, "d")
    first = await bench.told(session)
    bench.dispatcher.release("a", "d")
    bench.dispatcher.ask(a, "d")
    second = await bench.told(session)
    bench.dispatcher.release("b", "d")
    bench.dispatcher.release("c", "d")

    assert (first, second, await bench.told(session)) == (["a"], ["b"], ["c", "a"])
    assert (a.queued, b.queued, c.queued) == (1, 1, 1)
    assert bench.dispatcher.job_at("d") == "a"


async def test_asking_again_sends_the_task_at_hand_again_and_keeps_a_place_in_the_queue() -> None:
    bench, a, b, c = Bench(), Source("a"), Source("b"), Source("c")
    session = bench.connect()
    for source in (a, b, c, b, a):
        bench.dispatcher.ask(source, "d")

    assert bench.dispatcher.queue_of("d") == ["b", "c"]
    assert await bench.told(session) == ["a", "a"]
    assert b.queued == 2


async def test_a_cancelled_task_makes_room_and_a_queued_one_is_forgotten() -> None:
    bench, a, b, c = Bench(), Source("a"), Source("b"), Source("c")
    session = bench.connect()
    for source in (a, b, c):
        bench.dispatcher.ask(source, "d")

    bench.dispatcher.cancel("b", "d", "b.r1.d", "enough")
    bench.dispatcher.cancel("a", "d", "a.r1.d", "enough")

    assert await bench.told(session) == ["a", "-b", "-a", "c"]
    assert b.begun == 0


async def test_a_device_that_is_away_keeps_its_task_and_is_sent_nothing_new() -> None:
    bench, a, b = Bench(), Source("a"), Source("b")
    session = bench.connect()
    bench.dispatcher.ask(a, "d")
    bench.dispatcher.ask(b, "d")
    bench.fleet.disconnect(session)
    held = bench.dispatcher.job_at("d")
    bench.dispatcher.release("a", "d")
    while_away = b.begun

    session = bench.connect()
    bench.dispatcher.ask(a, "d")

    assert (held, while_away) == ("a", 0)
    assert await bench.told(session) == ["b"]  # it asked first
    assert a.queued == 1
    bench.fleet.end_all(ConnectionError())  # type: ignore[arg-type]


async def test_a_device_that_may_not_work_is_given_no_new_task() -> None:
    bench, a, b = Bench(), Source("a"), Source("b")
    session = bench.connect()
    bench.dispatcher.ask(a, "d")
    bench.dispatcher.ask(b, "d")
    bench.fleet.note(session, Heartbeat(conditions=Conditions(on_battery=True)))

    bench.dispatcher.release("a", "d")
    on_battery = await bench.told(session)
    bench.fleet.note(session, Heartbeat())
    bench.dispatcher.ask(b, "d")

    assert on_battery == ["a"]
    assert await bench.told(session) == ["b"]


async def test_a_task_whose_time_is_over_makes_way_for_who_waits() -> None:
    bench, a, b = Bench(), Source("a", time_s=0.05), Source("b")
    session = bench.connect()
    bench.dispatcher.ask(a, "d")
    bench.dispatcher.ask(b, "d")

    await patiently(a.given_up.wait())

    assert await bench.told(session) == ["a", "-a", "b"]


async def test_a_job_that_ends_leaves_nothing_behind() -> None:
    bench, a, b = Bench(), Source("a"), Source("b")
    session = bench.connect()
    for source in (a, b):
        bench.dispatcher.ask(source, "d")

    bench.dispatcher.withdraw("b")
    withdrawn = bench.dispatcher.queue_of("d")
    bench.dispatcher.forget("a")

    assert withdrawn == []
    assert bench.dispatcher.job_at("d") is None
    assert bench.dispatcher._desks == {}
    assert await bench.told(session) == ["a"]

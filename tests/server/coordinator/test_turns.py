"""The bounds on uploads: never more than there is room for, first come, first served, nobody kept waiting for ever."""

from __future__ import annotations

import asyncio

from server.coordinator.admission import Room, Turns
from tests.patience import LIMIT_S


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_room_is_never_overdrawn_and_is_given_in_order() -> None:
    room, inside, order, leave = Room(10), [0], [], asyncio.Semaphore(0)

    async def use(size: int) -> None:
        async with room.take(size):
            inside[0] += size
            order.append(size)
            await leave.acquire()
            inside[0] -= size

    tasks = [asyncio.create_task(use(size)) for size in (4, 6, 30, 1, 2)]  # 30 is more than there is: it goes alone
    seen = []
    for _ in tasks:
        await settle()
        seen.append(inside[0])
        leave.release()
    await asyncio.gather(*tasks)

    assert seen == [10, 6, 30, 3, 2]
    assert order == [4, 6, 30, 1, 2]


async def test_who_is_cancelled_while_waiting_for_room_is_not_waited_for() -> None:
    room, entered = Room(10), []

    async def use(name: str, size: int) -> None:
        async with room.take(size):
            entered.append(name)

    async with room.take(8):
        given_up = asyncio.create_task(use("large", 9))
        behind = asyncio.create_task(use("small", 2))
        await settle()
        assert entered == []
        given_up.cancel()
        await settle()
        assert entered == ["small"]
    async with asyncio.timeout(LIMIT_S):
        await behind
        await use("all", 10)  # nothing was left taken

    assert entered == ["small", "all"]


async def test_who_is_cancelled_as_room_is_given_gives_it_back() -> None:
    room = Room(10)

    async def use() -> None:
        async with room.take(10):
            await asyncio.Event().wait()

    async with room.take(10):
        waiting = asyncio.create_task(use())
        await settle()
    waiting.cancel()  # its place was given to it, and it has not run since
    async with asyncio.timeout(LIMIT_S), room.take(10):
        await settle()

    assert waiting.cancelled()


async def test_a_turn_that_is_over_goes_to_who_waits_and_comes_back() -> None:
    now, events = [0.0], []
    turns = Turns(1, 10.0, lambda: now[0])

    async def quick() -> None:
        async with turns.turn():
            events.append("quick")

    async with asyncio.timeout(LIMIT_S), turns.turn() as slow:
        task = asyncio.create_task(quick())
        await settle()
        await slow.give_way()
        assert events == []  # its turn is not over
        now[0] = 10.0
        await slow.give_way()
        events.append("slow")
        await task

    assert events == ["quick", "slow"]

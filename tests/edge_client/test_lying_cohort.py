"""A coordinator that lies in a secure sum: the device says no and why, and nothing more leaves it."""

from collections.abc import Callable

import pytest

from bitfleet.v1 import fleet_pb2 as pb
from tests.edge_client.cohort import DEVICE, KEYS, MASKED, NEIGHBOURS, REVEAL, SHARES, Cohort, again, came, secure_task
from tests.edge_client.conftest import Start
from tests.edge_client.device import Device
from tests.edge_client.wire import Coordinator, make_task

Lie = Callable[[Cohort, dict[int, bytes]], pb.ExchangeOrder]


def changed(order: pb.ExchangeOrder, **fields: object) -> pb.ExchangeOrder:
    copy = pb.ExchangeOrder()
    copy.CopyFrom(order)
    for name, value in fields.items():
        setattr(copy, name, value)
    return copy


def shrunk(cohort: Cohort, sent: dict[int, bytes]) -> pb.ExchangeOrder:
    order = changed(cohort.shares_order(), num_members=2)
    del order.peers[1:]
    return order


def doubled(cohort: Cohort, sent: dict[int, bytes]) -> pb.ExchangeOrder:
    order = cohort.shares_order()
    order.peers[1].CopyFrom(order.peers[0])
    return order


def under_another_name(cohort: Cohort, sent: dict[int, bytes]) -> pb.ExchangeOrder:
    order = cohort.shares_order()
    order.peers[1].keys = order.peers[0].keys
    return order


def with_new_keys(cohort: Cohort, sent: dict[int, bytes]) -> pb.ExchangeOrder:
    other = Cohort(cohort.task, cohort.keys[DEVICE], cohort.vector.to_bytes())
    return other.shares_order()


def fewer_afterwards(cohort: Cohort, sent: dict[int, bytes]) -> pb.ExchangeOrder:
    return changed(cohort.masked_order(sent[SHARES]), num_members=3)


def alone(cohort: Cohort, sent: dict[int, bytes]) -> pb.ExchangeOrder:
    order = cohort.masked_order(sent[SHARES])
    del order.peers[:]
    return order


def with_shares_of_others(cohort: Cohort, sent: dict[int, bytes]) -> pb.ExchangeOrder:
    order = cohort.masked_order(sent[SHARES])
    order.peers[0].sealed, order.peers[1].sealed = order.peers[1].sealed, order.peers[0].sealed
    return order


def said_to_be_lost(cohort: Cohort, sent: dict[int, bytes]) -> pb.ExchangeOrder:
    return cohort.reveal_as({DEVICE: False, **dict.fromkeys(NEIGHBOURS, True)})


def too_few_survivors(cohort: Cohort, sent: dict[int, bytes]) -> pb.ExchangeOrder:
    return cohort.reveal_as({DEVICE: True, "cat-1": True, "dog-1": False, "emu-1": False})


def of_a_stranger(cohort: Cohort, sent: dict[int, bytes]) -> pb.ExchangeOrder:
    return cohort.reveal_as({DEVICE: True, **dict.fromkeys(NEIGHBOURS, True), "fox-1": True})


def before_its_time(cohort: Cohort, sent: dict[int, bytes]) -> pb.ExchangeOrder:
    return cohort.reveal_as({DEVICE: True, **dict.fromkeys(NEIGHBOURS, True)})


def no_step(cohort: Cohort, sent: dict[int, bytes]) -> pb.ExchangeOrder:
    return changed(cohort.shares_order(), step=77)


LIES: list[tuple[int, Lie, str]] = [
    (KEYS, shrunk, "the exchange has 2 members; 3 were promised"),
    (KEYS, doubled, "named a member of the exchange twice"),
    (KEYS, under_another_name, "cat-1"),
    (KEYS, before_its_time, "asked for REVEAL before MASKED"),
    (KEYS, no_step, "asks for step 77"),
    (SHARES, with_new_keys, "asked for SHARES a second time, with other input"),
    (SHARES, fewer_afterwards, "the exchange had 4 members, and is now said to have 3"),
    (SHARES, alone, "only 1 members sent shares"),
    (SHARES, with_shares_of_others, "cannot be opened"),
    (MASKED, said_to_be_lost, "told that this device was lost"),
    (MASKED, too_few_survivors, "only 2 members survived"),
    (MASKED, of_a_stranger, "fox-1"),
]


async def bring_to(
    coordinator: Coordinator, device: Device, task: pb.Task, step: int
) -> tuple[Cohort, dict[int, bytes]]:
    """Go through an exchange until the device has sent a step."""
    sent: dict[int, bytes] = {KEYS: await came(coordinator, KEYS, task.secure.attempt)}
    cohort = Cohort(task, sent[KEYS], device.state.exchange.vector_file.read_bytes())
    if step >= SHARES:
        await coordinator.order(cohort.shares_order())
        sent[SHARES] = await came(coordinator, SHARES, task.secure.attempt)
    if step >= MASKED:
        await coordinator.order(cohort.masked_order(sent[SHARES]))
        sent[MASKED] = await came(coordinator, MASKED, task.secure.attempt)
    return cohort, sent


@pytest.mark.parametrize(("step", "lie", "words"), LIES, ids=lambda value: getattr(value, "__name__", ""))
async def test_a_lie_is_refused_and_told_and_nothing_more_leaves(
    coordinator: Coordinator, start: Start, step: int, lie: Lie, words: str
) -> None:
    device = start(coordinator.port, "--device-id", DEVICE)
    cohort, sent = await bring_to(coordinator, device, await coordinator.give(secure_task()), step)
    before = len(coordinator.updates)

    await coordinator.order(lie(cohort, sent))
    await coordinator.until(lambda: coordinator.reports)
    coordinator.orders.clear()
    await coordinator.give(make_task(2)[0])
    await coordinator.until(lambda: coordinator.updates[-1][0].round_number == 2)

    report = coordinator.reports[0]
    assert (report.task_id, report.outcome) == (cohort.task.task_id, pb.TASK_OUTCOME_DECLINED)
    assert words in report.reason
    assert len(coordinator.updates) == before + 1
    assert not device.state.exchange.root.exists()
    kinds = [row["kind"] for row in device.outbox()]
    assert kinds == [*("keys", "shares", "masked")[:before], "update"]


@pytest.mark.parametrize("lost_first", [True, False])
async def test_both_kinds_of_share_of_a_device_are_never_given(
    coordinator: Coordinator, start: Start, lost_first: bool
) -> None:
    device = start(coordinator.port, "--device-id", DEVICE)
    cohort, _ = await bring_to(coordinator, device, await coordinator.give(secure_task()), MASKED)
    stories = [{DEVICE: True, "cat-1": came, "dog-1": True, "emu-1": True} for came in (not lost_first, lost_first)]
    first, second = (cohort.reveal_as(story) for story in stories)
    coordinator.answers_to_lose = 10_000  # it says nothing to the first answer, and asks for the other kind

    await coordinator.order(first)
    await came(coordinator, REVEAL)
    await coordinator.order(second)
    await coordinator.until(lambda: coordinator.reports)
    device.kill()
    coordinator.answers_to_lose = 0
    start(coordinator.port, "--device-id", DEVICE)
    coordinator.orders[second.task_id] = second
    await coordinator.until(lambda: len(coordinator.reports) == 2)

    assert {report.outcome for report in coordinator.reports} == {pb.TASK_OUTCOME_DECLINED}
    assert "asked for REVEAL a second time, with other input" in coordinator.reports[0].reason
    assert "asked for REVEAL a second time, with other input" in coordinator.reports[1].reason
    assert len(set(coordinator.steps(REVEAL))) == 1
    assert not device.state.exchange.root.exists()


async def test_keys_of_an_older_attempt_are_not_taken(coordinator: Coordinator, start: Start) -> None:
    device = start(coordinator.port, "--device-id", DEVICE)
    task = await coordinator.give(secure_task())
    first, _ = await bring_to(coordinator, device, task, SHARES)
    second, _ = await bring_to(coordinator, device, await coordinator.give(again(task)), KEYS)

    order = second.shares_order()
    order.peers[0].keys = first.keys[order.peers[0].device_id]
    await coordinator.order(order)
    await coordinator.until(lambda: coordinator.reports)

    assert coordinator.reports[0].outcome == pb.TASK_OUTCOME_DECLINED
    assert "attempt 1" in coordinator.reports[0].reason
    assert coordinator.steps(SHARES, 2) == []


async def test_an_attempt_is_not_gone_back_to_and_its_terms_stay(coordinator: Coordinator, start: Start) -> None:
    device = start(coordinator.port, "--device-id", DEVICE)
    task = await coordinator.give(secure_task(attempt=2))
    await bring_to(coordinator, device, task, SHARES)
    await device.until(lambda: device.log.count("edge_client.exchange shares") == 1)
    older, laxer = secure_task(attempt=1), again(task)
    laxer.secure.threshold = 0.6

    await coordinator.give(older)
    await device.until(lambda: "task of an earlier attempt passed over" in device.log)
    await coordinator.give(laxer)
    await coordinator.until(lambda: coordinator.reports)

    assert "under other terms" in coordinator.reports[0].reason
    assert {header.attempt for header, _ in coordinator.updates} == {2}


async def test_a_step_is_not_sent_for_ever(coordinator: Coordinator, start: Start) -> None:
    device = start(coordinator.port, "--device-id", DEVICE)
    cohort, sent = await bring_to(coordinator, device, await coordinator.give(secure_task()), SHARES)

    async def until_asked(count: int) -> None:
        await device.until(lambda: device.log.count("edge_client.exchange shares") == count)

    for count in range(1, 9):
        await until_asked(count)
        await coordinator.order(cohort.shares_order())
    await coordinator.until(lambda: coordinator.reports)

    assert "asked for shares of a secure sum more than 8 times" in coordinator.reports[0].reason
    assert coordinator.steps(SHARES) == [sent[SHARES]] * 8


async def test_a_flood_of_orders_is_not_answered_one_by_one(coordinator: Coordinator, start: Start) -> None:
    device = start(coordinator.port, "--device-id", DEVICE)
    await coordinator.until(lambda: coordinator.streams)

    for number in range(200):
        await coordinator.say(
            pb.ConnectResponse(exchange=pb.ExchangeOrder(task_id=f"job-{number}", attempt=1, step=SHARES))
        )
    await coordinator.give(make_task(1)[0])
    await coordinator.until(lambda: coordinator.updates)

    assert 1 <= len(coordinator.reports) < 100
    assert len(device.ask("outbox")["reports"]) == len(coordinator.reports)


async def test_an_order_for_no_task_of_this_device_is_told_to_be_in_vain(
    coordinator: Coordinator, start: Start
) -> None:
    start(coordinator.port)
    await coordinator.until(lambda: coordinator.streams)

    await coordinator.say(pb.ConnectResponse(exchange=pb.ExchangeOrder(task_id="job-9", attempt=1, step=SHARES)))
    await coordinator.until(lambda: coordinator.reports)

    assert coordinator.reports[0].task_id == "job-9"
    assert "no part in this secure sum" in coordinator.reports[0].reason


async def test_sums_that_hide_nothing_are_declined_before_anything_is_done(
    coordinator: Coordinator, start: Start
) -> None:
    device = start(coordinator.port)
    tasks = [secure_task(number) for number in range(1, 7)]
    tasks[0].secure.threshold = 0.5
    tasks[1].secure.threshold = float("nan")
    tasks[2].secure.min_members = 2
    tasks[3].secure.attempt = 0
    tasks[4].secure.weights = "float32"
    tasks[5].secure.privacy.noise_multiplier = -1.0

    for number, task in enumerate(tasks, 1):
        await coordinator.give(task)
        await coordinator.until_count(coordinator.reports, number)

    assert {report.outcome for report in coordinator.reports} == {pb.TASK_OUTCOME_DECLINED}
    reasons = [report.reason for report in coordinator.reports]
    assert "threshold above 0.5 and at most 1, got 0.5" in reasons[0]
    assert "got nan" in reasons[1]
    assert "needs 3 members at least, got 2" in reasons[2]
    assert "attempts from 1 on" in reasons[3]
    assert "float32" in reasons[4]
    assert "numbers that give it privacy" in reasons[5]
    assert (coordinator.updates, device.trainers()) == ([], [])


async def test_secure_sums_are_held_against_the_owners_rules(
    coordinator: Coordinator, start: Start, tmp_path_factory: pytest.TempPathFactory
) -> None:
    policy = tmp_path_factory.mktemp("policy") / "policy.toml"
    policy.write_text("[privacy]\nmin_cohort = 5\nmax_epsilon = 1\n")
    device = start(coordinator.port, "--policy", str(policy))
    few, noiseless, noisy = secure_task(1), secure_task(2), secure_task(3)
    for task in (noiseless, noisy):
        task.secure.min_members = 5
    noisy.secure.privacy.CopyFrom(
        pb.DifferentialPrivacy(mechanism="distributed", clip=10.0, noise_multiplier=1.0, delta=1e-5)
    )
    few.quorum = 100  # says nothing of a sum

    for number, task in enumerate((few, noiseless, noisy), 1):
        await coordinator.give(task)
        await coordinator.until_count(coordinator.reports, number)
    reasons = [report.reason for report in coordinator.reports]
    device.kill()
    coordinator.tasks = {"job-4": secure_task(4)}
    policy.write_text("[privacy]\nrequire_secure_aggregation = true\n")
    start(coordinator.port, "--policy", str(policy), state="strict")
    await coordinator.until(lambda: len(coordinator.reports) == 4)

    assert "made of 5 updates at least, this task's may be of 3" in reasons[0]
    assert "this job has none" in reasons[1]
    assert "0 is spent, and with this round it would be" in reasons[2]
    assert "without certificates nobody's keys are signed" in coordinator.reports[3].reason
    assert coordinator.updates == []

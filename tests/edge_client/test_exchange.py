"""A device in a secure sum, as a real process: from its training to its last step, whatever comes between."""

import asyncio
import shutil
import signal
import stat

import numpy as np
import pytest

from bitfleet.v1 import fleet_pb2 as pb
from edge_client.cli import main
from tests.edge_client.cohort import DEVICE, KEYS, MASKED, REVEAL, SHARES, Cohort, again, came, secure_task
from tests.edge_client.conftest import Start
from tests.edge_client.device import Device
from tests.edge_client.wire import Coordinator, make_task


def begin(start: Start, coordinator: Coordinator, *arguments: str) -> Device:
    return start(coordinator.port, "--device-id", DEVICE, *arguments)


async def cohort_of(coordinator: Coordinator, device: Device, task: pb.Task) -> Cohort:
    """Wait for the device's keys, and find it a cohort."""
    keys = await came(coordinator, KEYS, task.secure.attempt)
    return Cohort(task, keys, device.state.exchange.vector_file.read_bytes())


async def go_through(coordinator: Coordinator, cohort: Cohort, lost: tuple[str, ...] = ()) -> bytes:
    """Ask for the steps one after the other; gives the last payload."""
    attempt = cohort.task.secure.attempt
    await coordinator.order(cohort.shares_order())
    await coordinator.order(cohort.masked_order(await came(coordinator, SHARES, attempt)))
    await coordinator.order(cohort.reveal_order(await came(coordinator, MASKED, attempt), lost))
    return await came(coordinator, REVEAL, attempt)


@pytest.mark.parametrize(("weights", "lost"), [("signs", ()), ("fixed", ("cat-1",))])
async def test_a_device_adds_its_update_to_a_sum_and_shows_it_to_nobody(
    coordinator: Coordinator, start: Start, weights: str, lost: tuple[str, ...]
) -> None:
    device = begin(start, coordinator)
    task = await coordinator.give(secure_task(weights=weights))  # type: ignore[arg-type]
    cohort = await cohort_of(coordinator, device, task)
    exchange = device.state.exchange
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (exchange.root, exchange.attempt, exchange.vector_file)]

    total = cohort.finish(await go_through(coordinator, cohort, lost))
    await device.until(lambda: not exchange.root.exists())

    plain = cohort.plain_sum(4 - len(lost))
    assert total.sums.keys() == plain.sums.keys()
    assert all(np.array_equal(total.sums[name], plain.sums[name]) for name in plain.sums)
    vector = cohort.vector.to_bytes()
    assert all(vector not in data for _, data in coordinator.updates)
    rows = device.outbox()
    assert [row["kind"] for row in rows] == ["keys", "shares", "masked", "reveal"]
    assert [row["digest"] for row in rows] == [header.update_digest for header, _ in coordinator.updates]
    for header, _ in coordinator.updates:
        told = header.metrics
        assert (header.num_examples, told.loss, told.accuracy, told.validation_loss) == (1, 0.0, 0.0, 0.0)
        assert told.steps == 20
    assert coordinator.reports == []
    assert modes == [0o700, 0o700, 0o600]
    assert device.state.local_states.path("job").exists()


@pytest.mark.parametrize("step", [KEYS, SHARES, MASKED, REVEAL])
async def test_a_device_that_loses_its_power_goes_on_in_the_step_where_it_was(
    coordinator: Coordinator, start: Start, step: pb.ExchangeStep
) -> None:
    device = begin(start, coordinator)
    task = await coordinator.give(secure_task())
    accept = coordinator.answer

    def cut_power(header: pb.UpdateHeader) -> pb.SubmitUpdateResponse:
        if header.step == step and len(coordinator.steps(step)) == 1:
            device.kill()  # it has sent the step, and does not hear the answer
        return accept(header)

    async def answered(wanted: pb.ExchangeStep) -> bytes:
        """Wait for a step's payload; the device is started anew where that was the last that it did."""
        nonlocal device
        payload = await came(coordinator, wanted)
        if wanted == step:
            await asyncio.to_thread(device.wait)
            device = begin(start, coordinator)
        return payload

    coordinator.answer = cut_power
    await answered(KEYS)
    cohort = await cohort_of(coordinator, device, task)
    await coordinator.order(cohort.shares_order())
    await coordinator.order(cohort.masked_order(await answered(SHARES)))
    order = cohort.reveal_order(await answered(MASKED))
    await coordinator.order(order)
    reveal = await answered(REVEAL)
    if step == REVEAL:
        await coordinator.order(order)  # the coordinator, too, may have lost the step with its power
    await device.until(lambda: not device.state.exchange.attempt.exists())

    plain, total = cohort.plain_sum(4), cohort.finish(reveal)
    assert all(np.array_equal(total.sums[name], plain.sums[name]) for name in plain.sums)
    for each in (KEYS, SHARES, MASKED, REVEAL):
        assert len(set(coordinator.steps(each))) == 1  # whatever was sent twice was the same bytes
    assert device.log.count("trainer started") == 1
    assert coordinator.reports == []


async def test_the_child_may_be_killed_while_it_makes_a_step(coordinator: Coordinator, start: Start) -> None:
    device = begin(start, coordinator)
    task = await coordinator.give(secure_task())
    cohort = await cohort_of(coordinator, device, task)
    participant = device.state.exchange.attempt / "participant"
    before = participant.read_bytes()

    shares = await answer_to(coordinator, cohort.shares_order(), SHARES)
    participant.write_bytes(before)  # as if it had been killed after it wrote the payload, and before that counted
    device.kill()
    device = begin(start, coordinator)
    await coordinator.order(cohort.shares_order())
    await coordinator.until(lambda: len(coordinator.steps(SHARES)) == 2)

    assert coordinator.steps(SHARES) == [shares, shares]


async def answer_to(coordinator: Coordinator, order: pb.ExchangeOrder, step: pb.ExchangeStep) -> bytes:
    await coordinator.order(order)
    return await came(coordinator, step, order.attempt)


async def test_another_attempt_has_new_keys_and_no_new_training(coordinator: Coordinator, start: Start) -> None:
    device = begin(start, coordinator)
    task = await coordinator.give(secure_task())
    first = await cohort_of(coordinator, device, task)
    await coordinator.order(first.masked_order(await answer_to(coordinator, first.shares_order(), SHARES)))
    await came(coordinator, MASKED)

    second_task = await coordinator.give(again(task))
    second = await cohort_of(coordinator, device, second_task)
    reveal = await go_through(coordinator, second)
    await device.until(lambda: not device.state.exchange.attempt.exists())
    await coordinator.give(again(second_task))
    await coordinator.until(lambda: coordinator.reports)

    plain, total = second.plain_sum(4), second.finish(reveal)
    assert all(np.array_equal(total.sums[name], plain.sums[name]) for name in plain.sums)
    assert first.keys[DEVICE] != second.keys[DEVICE]
    assert device.log.count("trainer started") == 1
    assert coordinator.steps(REVEAL, 1) == []
    # It has helped to open the second sum: the difference to a third one could be one device's update.
    assert coordinator.reports[0].outcome == pb.TASK_OUTCOME_DECLINED
    assert "in a sum that was revealed (attempt 2)" in coordinator.reports[0].reason
    assert coordinator.steps(KEYS, 3) == []


async def test_a_secure_sum_that_is_cancelled_leaves_nothing_behind(coordinator: Coordinator, start: Start) -> None:
    device = begin(start, coordinator)
    task = await coordinator.give(secure_task())
    cohort = await cohort_of(coordinator, device, task)
    await coordinator.order(cohort.masked_order(await answer_to(coordinator, cohort.shares_order(), SHARES)))
    await came(coordinator, MASKED)

    await coordinator.cancel(task)
    await device.until(lambda: not device.state.exchange.root.exists())
    await coordinator.give(make_task(2)[0])
    await coordinator.until(lambda: coordinator.updates[-1][0].round_number == 2)

    assert not device.state.local_states.path("job").exists()
    assert coordinator.steps(REVEAL) == []


async def test_a_device_that_is_told_to_stop_gives_its_part_up(coordinator: Coordinator, start: Start) -> None:
    device = begin(start, coordinator)
    task = await coordinator.give(secure_task())
    await coordinator.order((await cohort_of(coordinator, device, task)).shares_order())
    await came(coordinator, SHARES)

    device.signal(signal.SIGTERM)
    assert await device.ended() == 0
    await coordinator.until(lambda: coordinator.reports)

    assert coordinator.reports[0].outcome == pb.TASK_OUTCOME_ABANDONED
    assert not device.state.exchange.root.exists()


async def test_a_step_that_comes_too_late_ends_the_attempt_and_keeps_the_vector(
    coordinator: Coordinator, start: Start
) -> None:
    device = begin(start, coordinator)
    task = await coordinator.give(secure_task())
    cohort = await cohort_of(coordinator, device, task)
    accept = coordinator.answer
    coordinator.answer = lambda header: pb.SubmitUpdateResponse(status=pb.SUBMIT_STATUS_LATE, reason="over")

    await answer_to(coordinator, cohort.shares_order(), SHARES)
    await device.until(lambda: not device.state.exchange.attempt.exists())
    coordinator.answer = accept
    coordinator.orders.clear()
    second = await cohort_of(coordinator, device, await coordinator.give(again(task)))
    await go_through(coordinator, second)

    assert device.log.count("trainer started") == 1


async def test_noise_is_added_once_and_stands_in_the_account(coordinator: Coordinator, start: Start) -> None:
    device = begin(start, coordinator)
    task = secure_task(weights="signs")
    task.secure.privacy.CopyFrom(
        pb.DifferentialPrivacy(mechanism="distributed", clip=0.0, noise_multiplier=2.0, delta=1e-5)
    )
    cohort = await cohort_of(coordinator, device, await coordinator.give(task))
    await coordinator.order(cohort.masked_order(await answer_to(coordinator, cohort.shares_order(), SHARES)))
    masked = await came(coordinator, MASKED)

    device.kill()  # asked again, it sends the same noise: a second draw would give the mean of the two away
    begin(start, coordinator)
    await coordinator.order(masked_order_again(cohort))
    await coordinator.until(lambda: len(coordinator.steps(MASKED)) == 2)

    assert coordinator.steps(MASKED) == [masked, masked]
    row = device.outbox()[-1]
    assert row["privacy"] == {"mechanism": "distributed", "clip": 0.0, "noise_multiplier": 2.0, "delta": 1e-5}
    spent = device.ask("policy")["epsilon_spent"]
    assert spent == pytest.approx(1 / 8 + 2 * (1 / 8 * np.log(1e5)) ** 0.5)


def masked_order_again(cohort: Cohort) -> pb.ExchangeOrder:
    """The order of the masked update once more, its members in another sequence."""
    order = pb.ExchangeOrder(task_id=cohort.task.task_id, attempt=1, step=MASKED, num_members=len(cohort.keys))
    for name, sealed in reversed(cohort.combiner.sealed_for(DEVICE).items()):
        order.peers.add(device_id=name, sealed=sealed)
    return order


async def test_an_attempt_that_the_power_cut_off_at_its_beginning_is_begun(
    coordinator: Coordinator, start: Start
) -> None:
    device = begin(start, coordinator)
    coordinator.answers_to_lose = 10_000
    task = await coordinator.give(secure_task())
    await came(coordinator, KEYS)
    device.kill()
    shutil.rmtree(device.state.exchange.attempt)  # as if the power had gone before there was anything of it
    coordinator.updates.clear()

    coordinator.answers_to_lose = 0
    device = begin(start, coordinator)
    await go_through(coordinator, await cohort_of(coordinator, device, task))

    assert device.log.count("trainer started") == 1
    assert coordinator.reports == []


async def test_a_step_that_is_still_here_is_held_against_the_ledger(coordinator: Coordinator, start: Start) -> None:
    device = begin(start, coordinator)
    cohort = await cohort_of(coordinator, device, await coordinator.give(secure_task()))
    await answer_to(coordinator, cohort.shares_order(), SHARES)
    device.kill()
    verify = ["outbox", "--verify", "--state", str(device.state.root)]

    assert main(verify) == 0
    payload = device.state.exchange.payload("shares")
    payload.write_bytes(payload.read_bytes()[:-1] + b"x")
    assert main(verify) == 1

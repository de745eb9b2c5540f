"""Power cuts, broken links and full disks, with real processes: nothing is lost, nothing is counted twice."""

import asyncio
import os
import random
import resource
import signal
from pathlib import Path

import pytest

from bitfleet.v1 import fleet_pb2 as pb
from tests.edge_client.conftest import Start
from tests.edge_client.wire import Coordinator, Wire, make_task

LONG = 10_000_000
WIDE = (1024, 512)
"""A network whose payloads have 590 kB."""


def ended(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


async def test_a_killed_agent_leaves_no_trainer_and_trains_again(coordinator: Coordinator, start: Start) -> None:
    device = start(coordinator.port)
    task, _ = make_task(steps=LONG)
    await coordinator.give(task)
    trainer = await device.trainer()

    device.kill()
    while not ended(trainer):  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    task.training.local_steps = 20
    start(coordinator.port)
    await coordinator.until(lambda: coordinator.updates)

    assert coordinator.updates[0][0].task_id == task.task_id


async def test_the_same_task_trained_twice_gives_the_same_bytes(coordinator: Coordinator, start: Start) -> None:
    task, model = make_task(1)
    task.deadline_s = 599  # changes nothing
    for state, seeded in (("one", True), ("two", False)):
        device = start(coordinator.port, "--device-id", "bird-1", state=state)
        if not seeded:
            task.ClearField("initial_seed")
        sent = len(coordinator.updates)
        await coordinator.give(task, model=model)
        await coordinator.until_count(coordinator.updates, sent + 1)
        device.kill()

    assert coordinator.updates[0][1] == coordinator.updates[1][1]
    assert len(coordinator.downloads) == 1


async def test_a_killed_trainer_is_started_once_more(coordinator: Coordinator, start: Start) -> None:
    device = start(coordinator.port)
    task, _ = make_task(steps=LONG)
    await coordinator.give(task)
    first = await device.trainer()

    os.kill(first, signal.SIGKILL)
    os.kill(await device.trainer(2), signal.SIGKILL)
    await coordinator.until(lambda: coordinator.reports)

    report = coordinator.reports[0]
    assert report.outcome == pb.TASK_OUTCOME_FAILED
    assert "killed by SIGKILL" in report.reason
    await coordinator.give(make_task(2)[0])
    await coordinator.until(lambda: coordinator.updates)


async def test_an_update_whose_answer_is_lost_is_sent_again(coordinator: Coordinator, start: Start) -> None:
    device = start(coordinator.port)
    coordinator.answers_to_lose = 2

    await coordinator.give(make_task()[0])
    await device.until(lambda: device.state.last_task())

    assert [row["status"] for row in device.outbox()] == ["UNANSWERED", "UNANSWERED", "DUPLICATE"]
    assert len({payload for _, payload in coordinator.updates}) == 1
    assert device.log.count("trainer started") == 1


async def test_an_update_is_sent_after_a_restart_without_training_again(coordinator: Coordinator, start: Start) -> None:
    device = start(coordinator.port)
    coordinator.answers_to_lose = LONG
    await coordinator.give(make_task()[0])
    await coordinator.until(lambda: coordinator.updates)

    device.kill()
    coordinator.answers_to_lose = 0
    device = start(coordinator.port)
    await device.until(lambda: device.state.last_task())

    assert device.log.count("trainer started") == 1
    assert device.outbox()[-1]["status"] == "DUPLICATE"
    assert device.ask("status")["pending"] is None


async def test_a_pending_update_that_the_disk_damaged_is_made_again(coordinator: Coordinator, start: Start) -> None:
    device = start(coordinator.port)
    coordinator.answers_to_lose = LONG
    task = await coordinator.give(make_task()[0])
    await coordinator.until(lambda: coordinator.updates)
    device.kill()
    content = bytearray(device.state.pending_file.read_bytes())
    content[len(content) // 2] ^= 1
    device.state.pending_file.write_bytes(content)

    coordinator.answers_to_lose = 0
    coordinator.tasks[task.task_id] = task
    device = start(coordinator.port)
    await device.until(lambda: device.state.last_task())

    assert "pending update dropped" in device.log
    assert len({payload for _, payload in coordinator.updates}) == 1
    assert device.log.count("trainer started") == 2


async def test_a_cached_model_that_the_disk_damaged_is_downloaded_again(coordinator: Coordinator, start: Start) -> None:
    device = start(coordinator.port)
    task, model = make_task(from_seed=False)
    await coordinator.give(task, model=model)
    await device.until(lambda: device.state.last_task())
    cached = device.state.models.find(task.model_digest)
    assert cached is not None
    cached.write_bytes(model[:-1] + bytes([model[-1] ^ 1]))

    following, _ = make_task(2, from_seed=False)
    await coordinator.give(following)
    await coordinator.until(lambda: len(coordinator.updates) == 2)

    assert len(coordinator.downloads) == 2
    cached = device.state.models.find(task.model_digest)
    assert cached is not None
    assert cached.read_bytes() == model


async def test_training_goes_on_while_the_coordinator_is_away(coordinator: Coordinator, start: Start) -> None:
    device = start(coordinator.port)
    task, _ = make_task(steps=60_000)
    await coordinator.give(task)
    await device.trainer()

    await coordinator.stop()
    await device.until(lambda: "no link" in device.log)
    async with Coordinator(coordinator.port) as successor:
        await successor.give(task)
        await successor.until(lambda: successor.updates)
        await device.until(lambda: device.state.last_task())

        assert len(successor.updates) == 1
    assert device.log.count("trainer started") == 1


async def test_a_download_that_breaks_goes_on_where_it_stopped(
    coordinator: Coordinator, wire: Wire, start: Start
) -> None:
    start(wire.port)
    task, model = make_task(from_seed=False, widths=WIDE)

    await coordinator.until(lambda: coordinator.hellos)
    wire.cut_after(200_000)
    await coordinator.give(task, model=model)
    await coordinator.until(lambda: coordinator.updates)

    assert wire.cuts == 1
    assert len(coordinator.downloads) == 2
    assert 0 < coordinator.downloads[1].offset < len(model)
    assert coordinator.updates[0][0].metrics.downloaded_bytes == len(model)


async def test_a_download_goes_on_after_a_restart_too(coordinator: Coordinator, start: Start) -> None:
    device = start(coordinator.port)
    task, model = make_task(from_seed=False, widths=WIDE)
    coordinator.download_gate.clear()
    await coordinator.give(task, model=model)
    await device.until(lambda: device.state.models.of(task.job_id).partial_bytes(task.model_digest) > len(model) // 4)

    device.kill()
    coordinator.download_gate.set()
    start(coordinator.port)
    await coordinator.until(lambda: coordinator.updates)

    assert coordinator.downloads[-1].offset > len(model) // 4


async def test_an_upload_that_breaks_is_made_again(coordinator: Coordinator, wire: Wire, start: Start) -> None:
    device = start(wire.port)

    await coordinator.until(lambda: coordinator.hellos)
    wire.cut_after(200_000)
    await coordinator.give(make_task(widths=WIDE)[0])
    await device.until(lambda: device.state.last_task())

    assert wire.cuts == 1
    assert len(coordinator.updates) == 1
    assert [row["status"] for row in device.outbox()] == ["UNANSWERED", "ACCEPTED"]


async def test_a_full_disk_fails_the_task_and_not_the_agent(coordinator: Coordinator, start: Start) -> None:
    device = start(coordinator.port)
    await coordinator.until(lambda: coordinator.hellos)
    large, model = make_task(1, from_seed=False, widths=WIDE)
    seeded, _ = make_task(2, widths=WIDE)
    small, _ = make_task(3)
    resource.prlimit(device.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))  # the next best thing to a full disk

    await coordinator.give(large, model=model)
    await coordinator.until(lambda: len(coordinator.reports) == 1)
    await coordinator.give(seeded)
    await coordinator.until(lambda: len(coordinator.reports) == 2)
    await coordinator.give(small)
    await coordinator.until(lambda: coordinator.updates)

    assert [report.reason for report in coordinator.reports] == ["File too large", "File too large"]
    assert not [path for path in device.state.models.root.rglob("*") if path.is_file()]


async def test_a_signal_is_obeyed_while_the_cable_is_pulled(coordinator: Coordinator, wire: Wire, start: Start) -> None:
    device = start(wire.port)
    await coordinator.give(make_task(steps=LONG)[0])
    await device.trainer()

    wire.stall()
    device.signal(signal.SIGTERM)

    assert await device.ended() == 0


async def test_a_download_can_be_cancelled(coordinator: Coordinator, start: Start) -> None:
    device = start(coordinator.port)
    task, model = make_task(1, from_seed=False, widths=WIDE)
    coordinator.download_gate.clear()
    await coordinator.give(task, model=model)
    await device.until(lambda: device.state.models.of(task.job_id).partial_bytes(task.model_digest))

    await coordinator.cancel(task)
    await coordinator.give(make_task(2)[0])
    await coordinator.until(lambda: coordinator.updates)

    assert coordinator.updates[0][0].round_number == 2
    assert coordinator.reports == []


async def test_without_a_ledger_nothing_leaves(coordinator: Coordinator, start: Start) -> None:
    device = start(coordinator.port)
    ledger = device.state.root / "outbox.jsonl"
    await device.until(ledger.exists)
    ledger.unlink()
    ledger.mkdir()  # one that cannot be written

    await coordinator.give(make_task()[0])
    await device.until(lambda: "the outbox ledger cannot be written" in device.log)
    device.signal(signal.SIGTERM)
    assert await device.ended() == 0
    assert coordinator.updates == []
    ledger.rmdir()
    start(coordinator.port)
    await coordinator.until(lambda: coordinator.updates)


@pytest.mark.slow
async def test_an_agent_killed_at_any_instant_counts_once(coordinator: Coordinator, start: Start) -> None:
    task, model = make_task(from_seed=False, widths=WIDE)
    instants = random.Random(0)
    await coordinator.give(task, model=model)
    for _ in range(6):
        device = start(coordinator.port)
        await asyncio.sleep(0.8 + 1.2 * instants.random())
        device.kill()

    device = start(coordinator.port)
    await coordinator.until(lambda: coordinator.updates)
    await device.until(lambda: device.state.last_task() and device.state.pending() is None)

    assert len({payload for _, payload in coordinator.updates}) == 1
    statuses = [row["status"] for row in device.outbox()]
    assert statuses.count("ACCEPTED") <= 1
    assert set(statuses) <= {"ACCEPTED", "DUPLICATE", "UNANSWERED"}

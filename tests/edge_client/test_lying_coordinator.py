"""A coordinator that asks for too much, lies about it, or talks nonsense: the device says no, and goes on."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bitfleet.v1 import fleet_pb2 as pb
from bnncore.zoo import mlp
from tests.edge_client.conftest import Start
from tests.edge_client.wire import Coordinator, make_task

LONG = 10_000_000
WIDE = (1024, 512)
"""A network whose payloads have 590 kB."""
WriteRules = Callable[[str], str]


@pytest.fixture
def rules(tmp_path: Path) -> WriteRules:
    """Write a policy; gives its file's name."""

    def write(text: str) -> str:
        path = tmp_path / "policy.toml"
        path.write_text(text)
        return str(path)

    return write


async def refusals(coordinator: Coordinator, *tasks: pb.Task) -> list[str]:
    """Give tasks one after the other; returns the reasons why the device does none of them."""
    for task in tasks:
        await coordinator.give(task)
        await coordinator.until_reported(task)
    assert {report.outcome for report in coordinator.reports} == {pb.TASK_OUTCOME_DECLINED}
    return [report.reason for report in coordinator.reports]


def huge_task(*, from_seed: bool) -> pb.Task:
    """A small announcement of a network that takes terabytes."""
    task, _ = make_task(7)
    task.spec_json = mlp(input_shape=(8, 8), widths=(1 << 20, 1 << 20), classes=3).to_json()
    task.model_digest, task.model_bytes = "0" * 64, 1000
    if not from_seed:
        task.ClearField("initial_seed")
    return task


async def test_what_the_owner_does_not_allow_is_refused_before_anything_is_done(
    coordinator: Coordinator, start: Start, rules: WriteRules
) -> None:
    policy = '[jobs]\nallow = ["job*"]\n[task]\nmax_model = "500KiB"\nmax_steps = 1000\n[privacy]\nmin_cohort = 10\n'
    device = start(coordinator.port, "--policy", rules(policy))

    large, _ = make_task(2, from_seed=False, widths=WIDE)
    few, _ = make_task(5)
    few.quorum = 9
    reasons = await refusals(coordinator, make_task(1, job_id="faces")[0], large, few, make_task(3, steps=1001)[0])
    await device.until(lambda: "at most 1000 local steps" in device.log)
    told = device.ask("status")["last_task"]

    assert reasons == [
        "the device's owner does not let it work for job 'faces'",
        f"the device's owner allows a model of at most 512000 bytes, this one has {large.model_bytes}",
        "the device's owner wants models made of 10 updates at least, this task's may be of 9",
        "the device's owner allows a task of at most 1000 local steps, this one has 1001",
    ]
    assert (told["outcome"], told["reason"]) == ("DECLINED", reasons[-1])
    assert coordinator.downloads == []
    assert device.trainers() == []
    enough, _ = make_task(4, steps=1000)
    enough.quorum = 10
    await coordinator.give(enough)
    await coordinator.until(lambda: coordinator.updates)


async def test_a_device_that_requires_secure_aggregation_sends_no_update_without_it(
    coordinator: Coordinator, start: Start, rules: WriteRules
) -> None:
    start(coordinator.port, "--policy", rules("[privacy]\nrequire_secure_aggregation = true\n"))

    (reason,) = await refusals(coordinator, make_task(1)[0])

    assert reason == "the device's owner requires secure aggregation, which this job does not have"
    assert coordinator.updates == []


async def test_memory_is_planned_here_whatever_the_coordinator_says(
    coordinator: Coordinator, start: Start, rules: WriteRules
) -> None:
    start(coordinator.port, "--policy", rules('[task]\nmax_memory = "30MiB"\n'))
    over, model = make_task(1, from_seed=False, widths=(4096, 1024))

    coordinator.models[over.model_digest] = model
    reasons = await refusals(coordinator, over, huge_task(from_seed=False), huge_task(from_seed=True))

    assert all("of memory as this device plans it" in reason for reason in reasons[:1])
    assert coordinator.hellos[0].capabilities.memory_bytes == 30 << 20
    assert coordinator.downloads == []
    await coordinator.give(make_task(4)[0])
    await coordinator.until(lambda: coordinator.updates)


async def test_without_a_policy_a_network_is_not_larger_than_the_machine(
    coordinator: Coordinator, start: Start
) -> None:
    start(coordinator.port)

    (reason,) = await refusals(coordinator, huge_task(from_seed=True))

    assert "as this device plans it, its owner lets a trainer take" in reason


async def test_a_download_that_is_not_as_announced_is_cut_off(coordinator: Coordinator, start: Start) -> None:
    device = start(coordinator.port)
    longer, model = make_task(1, from_seed=False, widths=WIDE)
    longer.model_bytes = 20_000
    in_crumbs, _ = make_task(2, from_seed=False, widths=WIDE)
    with_a_gap, _ = make_task(3, from_seed=False, widths=WIDE)
    sent = 0

    def pieces(model: bytes, first: int) -> Iterator[tuple[int, bytes]]:
        nonlocal sent
        task = next(iter(coordinator.tasks.values()))
        size = 1 if task == in_crumbs else 8192
        for offset in range(first, len(model), size):
            sent += 1
            yield offset + (task == with_a_gap), model[offset : offset + size]

    coordinator.pieces = pieces
    reasons: list[str] = []
    for task in (longer, in_crumbs, with_a_gap):
        await coordinator.give(task, model=model)
        await coordinator.until(lambda: len(coordinator.reports) > len(reasons))
        reasons.append(coordinator.reports[-1].reason)
        coordinator.tasks.clear()

    assert reasons == [
        "the model is longer than the 20000 bytes announced",
        "the model comes in pieces of less than 1024 bytes",
        "the coordinator sent bytes from 1 on, 0 was next",
    ]
    assert sent < len(model) // 8  # the crumbs came to an end
    assert not [path for path in device.state.models.root.rglob("*") if path.is_file()]


@pytest.mark.parametrize("deadline_s", [math.inf, 1e300])
async def test_a_task_that_never_ends_is_stopped(
    coordinator: Coordinator, start: Start, rules: WriteRules, deadline_s: float
) -> None:
    device = start(coordinator.port, "--policy", rules("[task]\nmax_seconds = 2\n"))
    task, _ = make_task(1, steps=LONG, deadline_s=deadline_s)

    await coordinator.give(task)
    await coordinator.until(lambda: coordinator.reports)

    reason = coordinator.reports[0].reason
    assert reason == "the device's owner lets a task take 2 s; they passed while TRAINING"
    assert device.children() == []


async def test_a_deadline_that_is_no_number_has_passed(coordinator: Coordinator, start: Start) -> None:
    start(coordinator.port)

    await coordinator.give(make_task(1, deadline_s=math.nan)[0])
    await coordinator.until(lambda: coordinator.reports)
    coordinator.tasks.clear()
    await coordinator.give(make_task(2)[0])
    await coordinator.until(lambda: coordinator.updates)

    assert "deadline passed" in coordinator.reports[0].reason


async def test_the_bytes_of_a_day_are_bounded_both_ways(
    coordinator: Coordinator, start: Start, rules: WriteRules
) -> None:
    device = start(coordinator.port, "--policy", rules('[day]\nmax_down = "700kB"\nmax_up = "650kB"\n'))
    first, model = make_task(1, from_seed=False, widths=WIDE)
    await coordinator.give(first, model=model)
    await coordinator.until(lambda: coordinator.updates)

    other, _ = make_task(2, from_seed=False, widths=(*WIDE[:1], 500))
    (down,) = await refusals(coordinator, other)
    coordinator.tasks.clear()
    await coordinator.give(make_task(3, widths=WIDE)[0])
    await coordinator.until(lambda: len(coordinator.reports) == 2)
    coordinator.tasks.clear()
    await coordinator.give(make_task(4)[0])
    await coordinator.until(lambda: len(coordinator.updates) == 2)
    today = device.ask("status")["today"]

    assert down.startswith("the device's owner lets 700000 bytes be downloaded in a day")
    assert coordinator.reports[1].reason.startswith("the device's owner lets 650000 bytes be sent in a day")
    assert len(coordinator.downloads) == 1
    assert len(model) < today["down"] < 700_000
    assert len(coordinator.updates[0][1]) < today["up"] < 650_000
    assert today["written"] > len(model) + len(coordinator.updates[0][1])

    for _ in range(40):  # a flood of words is a download too
        await coordinator.say(pb.ConnectResponse(cancel=pb.CancelTask(task_id="x", reason="y" * 5000)))
    await device.until(lambda: "what may be downloaded today is spent; waiting for tomorrow" in device.log)
    await coordinator.until(lambda: coordinator.streams == 0)


async def test_nonsense_is_outlived(coordinator: Coordinator, start: Start) -> None:
    coordinator.welcome.heartbeat_interval_s = -1.0
    coordinator.welcome.max_chunk_bytes = 1
    coordinator.welcome.server_version = "1\nERROR forged\x1b[2J"
    device = start(coordinator.port)
    coordinator.answer = lambda header: pb.SubmitUpdateResponse(status=99, reason="a\n" * 100_000)  # type: ignore[arg-type]
    await coordinator.say(pb.ConnectResponse())
    for number in range(20):
        await coordinator.give(make_task(1, job_id=f"job-{number}\n" + "x" * number * 20)[0])
        coordinator.tasks.clear()
    await coordinator.say(pb.ConnectResponse(cancel=pb.CancelTask(task_id="\0" * 999, reason="\n" * 999)))

    await coordinator.give(make_task(2)[0])
    await device.until(lambda: device.state.last_task())
    coordinator.answer = coordinator.accept
    await coordinator.give(make_task(3)[0])
    await coordinator.until(lambda: len(coordinator.updates) == 2)

    row = device.outbox()[0]
    assert (row["status"], len(row["reason"])) == ("UNKNOWN", 300)
    assert "ERROR forged\x1b" not in device.log
    assert [header.task_id for header, _ in coordinator.updates] == ["job-2", "job-3"]

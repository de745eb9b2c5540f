"""The agent's process against a real coordinator: the ordinary day, and what stops it."""

import os
import signal
from pathlib import Path

import grpc
import pytest

from bitfleet.v1 import fleet_pb2 as pb
from bnncore.codec import get_codec
from bnncore.spec import ModelSpec
from edge_client.pss import pss_bytes
from tests.edge_client.conftest import Start
from tests.edge_client.device import Device
from tests.edge_client.wire import Coordinator, make_task

LONG = 10_000_000
"""Steps that no test waits for."""


async def idle(coordinator: Coordinator) -> None:
    """Wait for a device that has nothing left to do."""
    seen = len(coordinator.heartbeats)
    await coordinator.until(
        lambda: any(beat.state == pb.DEVICE_STATE_IDLE for beat in coordinator.heartbeats[seen:]) or not seen
    )


async def training(coordinator: Coordinator) -> None:
    """Wait for a device that has done some steps of a task."""
    await coordinator.until(lambda: any(beat.step > 0 for beat in coordinator.heartbeats))


async def test_a_task_comes_back_as_one_update(coordinator: Coordinator, start: Start) -> None:
    device = start(coordinator.port, "--device-id", "bird-1", "--memory-budget", "64MiB")
    task, _ = make_task()

    await coordinator.give(task)
    await coordinator.until(lambda: coordinator.updates)
    await device.until(lambda: device.state.last_task())

    hello = coordinator.hellos[0]
    assert hello.capabilities.memory_bytes == 64 << 20
    assert (hello.device_id, hello.protocol_min, hello.protocol_max) == ("bird-1", 1, 1)
    assert (list(hello.data.classes), list(hello.data.input_shape)) == (["a", "b", "c"], [8, 8])
    assert (hello.data.num_examples, hello.capabilities.threads) == (60, 1)
    header, payload = coordinator.updates[0]
    state = get_codec("int8").decode(ModelSpec.from_json(task.spec_json), payload, kind="update")
    assert state["dense1.weight"].shape == (16, 64)
    assert (header.device_id, header.task_id, header.round_number) == ("bird-1", task.task_id, 1)
    assert (header.num_examples, header.model_digest) == (60, task.model_digest)
    assert header.metrics.steps == 20
    assert 0 < header.metrics.training_seconds < header.metrics.seconds
    assert 0 < header.metrics.loss < 5
    assert header.metrics.joules > 0
    assert header.metrics.joules_source in ("rapl", "pmic", "ina219", "hwmon", "model")
    assert 0 < header.metrics.accuracy <= 1
    assert header.metrics.peak_pss_bytes > 1 << 20
    assert coordinator.downloads == []  # the seed served
    row = device.outbox()[0]
    assert (row["status"], row["bytes"], row["digest"]) == ("ACCEPTED", len(payload), header.update_digest)
    assert device.ask("status")["agent_pid"] == device.pid


async def test_a_model_is_downloaded_once_and_then_cached(coordinator: Coordinator, start: Start) -> None:
    device = start(coordinator.port)
    task, model = make_task(1, from_seed=False)
    again, _ = make_task(2, from_seed=False)

    await coordinator.give(task, model=model)
    await coordinator.until(lambda: len(coordinator.updates) == 1)
    await coordinator.give(again)
    await coordinator.until(lambda: len(coordinator.updates) == 2)

    assert [request.offset for request in coordinator.downloads] == [0]
    downloaded = [header.metrics.downloaded_bytes for header, _ in coordinator.updates]
    assert downloaded == [len(model), 0]
    assert device.state.models.sizes() == {task.model_digest: len(model)}


async def test_a_trainer_is_kept_for_the_next_task(coordinator: Coordinator, start: Start) -> None:
    device = start(coordinator.port)

    for number in (1, 2):
        await coordinator.give(make_task(number)[0])
        await coordinator.until_count(coordinator.updates, number)

    assert device.children() == device.trainers()
    assert len(device.trainers()) == 1


async def test_a_trainer_ends_when_no_task_comes(coordinator: Coordinator, start: Start) -> None:
    device = start(coordinator.port, "--keep-trainer", "0.1")

    await coordinator.give(make_task(1)[0])
    await device.until(lambda: device.trainers() and not device.children())
    await coordinator.give(make_task(2)[0])
    await coordinator.until(lambda: len(coordinator.updates) == 2)

    assert len(set(device.trainers())) == 2


async def test_a_trainer_ends_with_its_task_where_none_is_to_be_kept(coordinator: Coordinator, start: Start) -> None:
    device = start(coordinator.port, "--keep-trainer", "0")

    await coordinator.give(make_task(1)[0])
    await coordinator.until(lambda: coordinator.updates)

    assert device.children() == []


async def test_a_trainer_that_is_killed_while_it_is_kept_is_replaced(coordinator: Coordinator, start: Start) -> None:
    device = start(coordinator.port, "--device-id", "bird-1")
    task, _ = make_task(1)
    await coordinator.give(task)
    await coordinator.until(lambda: len(coordinator.updates) == 1)

    os.kill(await device.trainer(), signal.SIGKILL)
    await coordinator.give(make_task(2)[0])
    await coordinator.until(lambda: len(coordinator.updates) == 2)

    assert coordinator.reports == []
    assert len(device.trainers()) == 2


async def test_a_trainer_is_not_kept_after_a_task_that_went_wrong(coordinator: Coordinator, start: Start) -> None:
    device = start(coordinator.port)

    await coordinator.give(make_task(1, classes=("a", "x", "y"))[0])
    await coordinator.until(lambda: coordinator.reports)

    assert device.trainers()
    assert device.children() == []


async def test_a_seed_that_does_not_give_the_model_leads_to_a_download(coordinator: Coordinator, start: Start) -> None:
    start(coordinator.port)
    task, model = make_task()
    task.initial_seed = 8

    await coordinator.give(task, model=model)
    await coordinator.until(lambda: coordinator.updates)

    assert [request.model_digest for request in coordinator.downloads] == [task.model_digest]
    assert coordinator.updates[0][0].metrics.downloaded_bytes == len(model)


async def test_a_cached_model_that_the_disk_damaged_is_downloaded_again(coordinator: Coordinator, start: Start) -> None:
    device = start(coordinator.port)
    task, model = make_task(from_seed=False)
    (device.state.models.of(task.job_id).root / f"{task.model_digest}.safetensors").write_bytes(model[:-1] + b"?")

    await coordinator.give(task, model=model)
    await coordinator.until(lambda: coordinator.updates)

    assert len(coordinator.downloads) == 1


async def test_classes_that_the_job_does_not_name_are_declined_with_a_list(
    coordinator: Coordinator, start: Start
) -> None:
    start(coordinator.port)
    task, _ = make_task(classes=("a", "x", "y"))

    await coordinator.give(task)
    await coordinator.until(lambda: coordinator.reports)

    report = coordinator.reports[0]
    assert (report.task_id, report.outcome) == (task.task_id, pb.TASK_OUTCOME_DECLINED)
    assert report.reason == "the device has classes that the job does not name: b, c"


async def test_another_input_shape_is_declined(coordinator: Coordinator, start: Start) -> None:
    start(coordinator.port)
    task, _ = make_task(input_shape=(28, 28))

    await coordinator.give(task)
    await coordinator.until(lambda: coordinator.reports)

    assert coordinator.reports[0].outcome == pb.TASK_OUTCOME_DECLINED
    assert "[28, 28]" in coordinator.reports[0].reason


async def test_a_task_that_cannot_be_done_fails_and_the_next_one_is_done(
    coordinator: Coordinator, start: Start
) -> None:
    start(coordinator.port)
    wrong, _ = make_task(1)
    wrong.spec_json = '{"format": "something else"}'
    gone, _ = make_task(2, from_seed=False)
    good, _ = make_task(3)

    for task in (wrong, gone):
        await coordinator.give(task)
        await coordinator.until_reported(task)
    await coordinator.give(good)
    await coordinator.until(lambda: coordinator.updates)

    assert [report.outcome for report in coordinator.reports] == [pb.TASK_OUTCOME_FAILED] * 2
    assert "no such model" in coordinator.reports[1].reason


async def test_heartbeats_go_on_during_training_and_a_cancel_ends_the_trainer(
    coordinator: Coordinator, start: Start
) -> None:
    device = start(coordinator.port)
    task, _ = make_task(steps=LONG)

    await coordinator.give(task)
    await training(coordinator)
    beat = coordinator.heartbeats[-1]
    await coordinator.cancel(task)
    await device.until(lambda: not device.children())
    await idle(coordinator)

    assert (beat.state, beat.task_id, beat.total_steps) == (pb.DEVICE_STATE_TRAINING, task.task_id, LONG)
    assert beat.pss_bytes > 1 << 20
    assert coordinator.reports == []
    assert coordinator.updates == []


async def test_a_newer_task_of_a_job_takes_the_place_of_the_older_one(coordinator: Coordinator, start: Start) -> None:
    start(coordinator.port)
    old, _ = make_task(1, steps=LONG)
    new, _ = make_task(2)

    await coordinator.give(old)
    await training(coordinator)
    await coordinator.give(new)
    await coordinator.until(lambda: coordinator.updates)

    assert coordinator.updates[0][0].task_id == new.task_id


async def test_training_ends_at_the_deadline_of_the_round(coordinator: Coordinator, start: Start) -> None:
    device = start(coordinator.port)
    for number, deadline_s in enumerate((3, 10, 30, 90), 1):  # the trainer may be slow to start
        await coordinator.give(make_task(number, steps=LONG, deadline_s=deadline_s)[0])
        await coordinator.until_count(coordinator.reports, number)
        assert "deadline passed" in coordinator.reports[-1].reason
        if "TRAINING" in coordinator.reports[-1].reason:
            break

    assert "deadline passed while TRAINING" in coordinator.reports[-1].reason
    assert device.children() == []


@pytest.mark.parametrize("status", [pb.SUBMIT_STATUS_LATE, pb.SUBMIT_STATUS_REJECTED])
async def test_an_update_that_is_not_taken_is_written_down_and_dropped(
    coordinator: Coordinator, start: Start, status: pb.SubmitStatus
) -> None:
    device = start(coordinator.port)
    coordinator.answer = lambda header: pb.SubmitUpdateResponse(status=status, reason="because")

    await coordinator.give(make_task()[0])
    await device.until(lambda: device.state.last_task())

    row = device.outbox()[0]
    assert (f"SUBMIT_STATUS_{row['status']}", row["reason"]) == (pb.SubmitStatus.Name(status), "because")
    assert device.state.pending() is None


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
async def test_a_signal_ends_the_trainer_and_tells_the_coordinator(
    coordinator: Coordinator, start: Start, number: signal.Signals, code: int
) -> None:
    device = start(coordinator.port)
    task, _ = make_task(steps=LONG)
    await coordinator.give(task)
    await training(coordinator)
    (trainer,) = device.children()

    device.signal(number)

    assert await device.ended() == code
    await coordinator.until(lambda: coordinator.reports)
    assert coordinator.reports[0].outcome == pb.TASK_OUTCOME_ABANDONED
    assert pss_bytes(trainer) == 0
    await coordinator.until(lambda: coordinator.streams == 0)


async def test_a_signal_without_a_coordinator_is_obeyed_too(coordinator: Coordinator, start: Start) -> None:
    device = start(1)
    await device.until(lambda: "no link" in device.log)

    device.signal(signal.SIGTERM)

    assert await device.ended() == 0


async def test_a_refused_protocol_ends_the_agent_with_the_coordinators_words(
    coordinator: Coordinator, start: Start
) -> None:
    coordinator.refusal = (grpc.StatusCode.FAILED_PRECONDITION, "upgrade with: pip install bitfleet")

    device = start(coordinator.port)

    assert await device.ended() == 5
    assert "upgrade with: pip install bitfleet" in device.log


async def test_an_unreachable_coordinator_ends_the_agent_only_after_max_retries(start: Start) -> None:
    device = start(1, "--max-retries", "2")

    assert await device.ended() == 4
    assert device.log.count("next try in") == 2
    assert "127.0.0.1:1" in device.log


async def test_a_wrong_data_folder_ends_the_agent_before_it_connects(
    coordinator: Coordinator, start: Start, tmp_path: Path
) -> None:
    device = start(coordinator.port, data=tmp_path / "nowhere")

    assert await device.ended() == 3
    assert f"the data folder {tmp_path / 'nowhere'} does not exist" in device.log
    assert coordinator.hellos == []


async def test_one_state_folder_has_one_agent(coordinator: Coordinator, start: Start) -> None:
    first = start(coordinator.port)
    await coordinator.until(lambda: coordinator.hellos)

    second = start(coordinator.port)

    assert await second.ended() == 3
    assert f"another agent (PID {first.pid}) uses the state folder" in second.log


async def test_a_state_folder_belongs_to_one_device(coordinator: Coordinator, start: Start) -> None:
    await stopped(start(coordinator.port, "--device-id", "bird-1"), coordinator)

    device = start(coordinator.port, "--device-id", "bird-2")

    assert await device.ended() == 3
    assert "belongs to device 'bird-1'" in device.log


async def test_a_device_keeps_the_name_that_it_made(coordinator: Coordinator, start: Start) -> None:
    await stopped(start(coordinator.port), coordinator)
    start(coordinator.port)

    await coordinator.until(lambda: len(coordinator.hellos) == 2)

    assert coordinator.hellos[0].device_id == coordinator.hellos[1].device_id


async def stopped(device: Device, coordinator: Coordinator) -> None:
    await coordinator.until(lambda: coordinator.hellos)
    device.signal(signal.SIGTERM)
    assert await device.ended() == 0


async def test_nothing_of_the_devices_own_is_in_what_it_says(
    coordinator: Coordinator, start: Start, tmp_path: Path
) -> None:
    device = start(coordinator.port)
    await coordinator.until(lambda: coordinator.hellos)
    (device.log_path.parent / "data" / "train-images-idx3-ubyte").write_bytes(b"cut")

    await coordinator.give(make_task()[0])
    await coordinator.until(lambda: coordinator.reports)

    said = [*coordinator.hellos, *coordinator.reports, *coordinator.heartbeats]
    assert all(str(tmp_path).encode() not in message.SerializeToString() for message in said)
    assert "the device's data cannot be read" in coordinator.reports[0].reason
    assert str(tmp_path) in device.log  # its owner is told where

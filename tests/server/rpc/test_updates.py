"""Updates over real gRPC: what is wrong with one is said, written down, and never stops the round."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import numpy as np
import pytest

from bitfleet.v1 import fleet_pb2 as pb
from bnncore.codec import get_codec
from bnncore.codec.container import pack, unpack
from bnncore.spec import ModelSpec
from bnncore.state import State
from bnncore.zoo import mlp
from tests.patience import patiently, until
from tests.server.conftest import DEADLINE_S, House, OpenHouse, make_job
from tests.server.scripted import ScriptedDevice, connected
from tests.server.strategies.updates import random_update


def encode(task: pb.Task, state: State) -> bytes:
    return get_codec(task.up_codec).encode(ModelSpec.from_json(task.spec_json), state, kind="update")


def with_tensor(payload: bytes, name: str, change: Callable[[Any], Any]) -> bytes:
    """Rewrite one tensor of a payload, as no honest encoder would."""
    tensors, metadata = unpack(payload)
    tensors[name] = change(np.array(tensors[name]))
    return pack(tensors, metadata)


def nan_in(array: Any) -> Any:
    array[0] = np.nan
    return array


def other_shape(payload: bytes) -> bytes:
    return with_tensor(payload, "dense1.weight", lambda array: array[:, :-1])


def another_network(payload: bytes) -> bytes:
    del payload
    spec = mlp((4, 4), (8,), 3)
    return get_codec("int8").encode(spec, random_update(1, spec=spec), kind="update")


BAD_PAYLOADS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "NaN": (lambda p: with_tensor(p, "norm1.beta", nan_in), "norm1.beta must be finite"),
    "a wrong shape": (other_shape, "dense1.weight must have shape [16, 16], got [16, 15]"),
    "another network": (another_network, "the payload must be made for"),
    "truncation": (lambda p: p[:-1], "cut or corrupted"),
    "garbage": (lambda p: b"\xff" * len(p), "payload"),
    "a value beyond fixed point": (
        lambda p: with_tensor(p, "norm1.beta", lambda array: array + np.float32(1e6)),
        "'norm1.beta' must lie within",
    ),
}


async def refusals(house: House, job_id: str) -> dict[str, tuple[str, str]]:
    rounds = await house.rounds(job_id)
    return {update["device_id"]: (update["status"], update["reason"]) for update in rounds[-1]["updates"]}


@pytest.mark.parametrize("kind", BAD_PAYLOADS)
async def test_a_bad_payload_is_rejected_with_its_reason_and_the_round_goes_on(
    open_house: OpenHouse, kind: str
) -> None:
    spoil, words = BAD_PAYLOADS[kind]
    async with open_house() as house, connected(house.address, *"abc") as (a, b, bad):
        job = await house.coordinator.jobs.create(make_job(rounds=1, quorum=2))
        task = await bad.next_task()
        answer = await bad.submit(task, spoil(await bad.train(task)))
        written = (await refusals(house, job.job_id))["c"]
        await asyncio.gather(a.work(1), b.work(1))
        await patiently(house.coordinator.jobs.wait_until_idle())
        (round_,) = await house.rounds(job.job_id)

    assert answer.status == pb.SUBMIT_STATUS_REJECTED
    assert words in answer.reason
    assert written == ("REJECTED", answer.reason)
    assert (round_["state"], round_["accepted"], round_["rejected"]) == ("COMMITTED", 2, 1)


BAD_HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "another round": ({"round_number": 2}, "round 2 has not begun"),
    "a wrong digest": ({"update_digest": "0" * 64}, "the header announced " + "0" * 64),
    "another model": ({"model_digest": "0" * 64}, "starts from model"),
    "another codec": ({"codec": "float32"}, "codec must be 'int8'"),
    "another task": ({"task_id": "x"}, "task_id 'x' is not the task of device"),
    "no examples": ({"num_examples": 0}, "num_examples must be 1 to"),
    "too many examples": ({"num_examples": 2**62}, "num_examples must be 1 to"),
    "too many bytes": ({"total_bytes": 2**40}, "an update must have 1 to"),
    "no bytes": ({"total_bytes": 0}, "an update must have 1 to"),
    "more bytes than announced": ({"total_bytes": 100}, "the header announced 100 bytes"),
    "an unknown job": ({"job_id": "nope"}, "there is no job 'nope'"),
}


@pytest.mark.parametrize("kind", BAD_HEADERS)
async def test_a_bad_header_is_rejected_and_a_good_update_after_it_counts(open_house: OpenHouse, kind: str) -> None:
    changes, words = BAD_HEADERS[kind]
    async with open_house() as house, connected(house.address, "a", "b") as (a, _):
        await house.coordinator.jobs.create(make_job())
        task = await a.next_task()
        payload = await a.train(task)
        bad = await a.submit(task, payload, **changes)
        good = await a.submit(task, payload)

    assert (bad.status, words in bad.reason) == (pb.SUBMIT_STATUS_REJECTED, True), bad.reason
    assert good.status == pb.SUBMIT_STATUS_ACCEPTED


async def test_a_stranger_is_rejected(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b") as (a, _):
        await house.coordinator.jobs.create(make_job())
        task = await a.next_task()
        payload = await a.train(task)
        task_id = task.task_id.removesuffix("a") + "stranger"
        answer = await a.submit(task, payload, device_id="stranger", task_id=task_id)

    assert answer.status == pb.SUBMIT_STATUS_REJECTED
    assert "stranger is not in the cohort of round 1" in answer.reason


async def test_the_same_update_twice_is_counted_once(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b") as (a, b):
        job = await house.coordinator.jobs.create(make_job(rounds=2))
        task = await a.next_task()
        payload = await a.train(task)
        answers = [await a.submit(task, payload) for _ in range(2)]
        await b.work(1)
        await a.next_task()  # the round has closed
        answers.append(await a.submit(task, payload))
        rounds = await house.rounds(job.job_id)

    assert [answer.status for answer in answers] == [
        pb.SUBMIT_STATUS_ACCEPTED, pb.SUBMIT_STATUS_DUPLICATE, pb.SUBMIT_STATUS_DUPLICATE
    ]  # fmt: skip
    assert rounds[0]["accepted"] == 2


async def test_the_same_update_at_the_same_time_is_counted_once(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b") as (a, _):
        await house.coordinator.jobs.create(make_job())
        task = await a.next_task()
        payload = await a.train(task)
        answers = await asyncio.gather(*(a.submit(task, payload) for _ in range(5)))

    statuses = sorted(answer.status for answer in answers)
    assert statuses == [pb.SUBMIT_STATUS_ACCEPTED, *[pb.SUBMIT_STATUS_DUPLICATE] * 4]


async def test_a_late_update_is_told_so_and_written_down(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, *"abc") as (a, b, slow):
        job = await house.coordinator.jobs.create(make_job(rounds=2, quorum=2))
        task = await slow.next_task()
        payload = await slow.train(task)
        await asyncio.gather(a.work(1), b.work(1))
        house.pass_time(DEADLINE_S)
        cancelled = (await slow.next_event()).cancel
        answer = await slow.submit(task, payload)
        rounds = await house.rounds(job.job_id)

    assert cancelled.task_id == task.task_id
    assert answer.status == pb.SUBMIT_STATUS_LATE
    assert "round 1 has closed" in answer.reason
    assert {u["device_id"]: u["status"] for u in rounds[0]["updates"]}["c"] == "LATE"


async def test_an_update_for_a_finished_job_is_late(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, *"abc") as (a, b, slow):
        await house.coordinator.jobs.create(make_job(rounds=1, quorum=2))
        task = await slow.next_task()
        payload = await slow.train(task)
        await asyncio.gather(a.work(1), b.work(1))
        house.pass_time(DEADLINE_S)
        await patiently(house.coordinator.jobs.wait_until_idle())
        answer = await slow.submit(task, payload)

    assert answer.status == pb.SUBMIT_STATUS_LATE
    assert "is COMPLETED and takes no updates" in answer.reason


async def parts(*messages: pb.SubmitUpdateRequest) -> AsyncIterator[pb.SubmitUpdateRequest]:
    for message in messages:
        yield message


def chunk(offset: int, data: bytes) -> pb.SubmitUpdateRequest:
    return pb.SubmitUpdateRequest(chunk=pb.UpdateChunk(offset=offset, data=data))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("no header", "must be its header"),
        ("two headers", "every part of an update must be a chunk"),
        ("a gap", "must start at byte 100, got 101"),
        ("short", "the stream ended after 100"),
        ("nothing", "must be its header"),
    ],
)
async def test_a_malformed_stream_is_an_error_and_the_update_may_be_sent_again(
    open_house: OpenHouse, kind: str, words: str
) -> None:
    async with open_house() as house, connected(house.address, "a", "b") as (a, _):
        await house.coordinator.jobs.create(make_job())
        task = await a.next_task()
        payload = await a.train(task)
        header = pb.SubmitUpdateRequest(header=a.header(task, payload))
        messages = {
            "no header": [chunk(0, payload)],
            "two headers": [header, header],
            "a gap": [header, chunk(0, payload[:100]), chunk(101, payload[101:])],
            "short": [header, chunk(0, payload[:100])],
            "nothing": [],
        }[kind]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await a.stub.SubmitUpdate(parts(*messages))
        answer = await a.submit(task, payload)
        leftovers = list((house.state / "blobs" / "tmp").iterdir())

    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert words in (caught.value.details() or "")
    assert answer.status == pb.SUBMIT_STATUS_ACCEPTED
    assert leftovers == []


async def test_a_refusal_reaches_a_device_that_is_still_sending(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a") as (a,):
        codes = []
        for _ in range(100):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await a.stub.SubmitUpdate(parts(*(chunk(0, bytes(1000)) for _ in range(50))))
            codes.append(caught.value.code())

    assert set(codes) == {grpc.StatusCode.INVALID_ARGUMENT}


async def test_an_upload_that_falls_silent_is_given_up(open_house: OpenHouse) -> None:
    async def stalling(device: ScriptedDevice, task: pb.Task, payload: bytes) -> AsyncIterator[pb.SubmitUpdateRequest]:
        yield pb.SubmitUpdateRequest(header=device.header(task, payload))
        yield chunk(0, payload[:10])
        await asyncio.sleep(60)

    async with open_house(upload_idle_s=0.2) as house, connected(house.address, "a", "b") as (a, _):
        await house.coordinator.jobs.create(make_job())
        task = await a.next_task()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await a.stub.SubmitUpdate(stalling(a, task, await a.train(task)))
        leftovers = list((house.state / "blobs" / "tmp").iterdir())

    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert leftovers == []


async def test_an_upload_that_breaks_off_leaves_nothing(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b") as (a, _):
        await house.coordinator.jobs.create(make_job())
        task = await a.next_task()
        payload = await a.train(task)
        call = a.stub.SubmitUpdate()
        await call.write(pb.SubmitUpdateRequest(header=a.header(task, payload)))
        await call.write(chunk(0, payload[:10]))
        temporary = house.state / "blobs" / "tmp"
        await until(lambda: any(temporary.iterdir()))
        call.cancel()
        await until(lambda: not any(temporary.iterdir()))

        assert (await a.submit(task, payload)).status == pb.SUBMIT_STATUS_ACCEPTED


async def test_a_chunk_larger_than_agreed_is_refused(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b") as (a, _):
        job = make_job(model={"zoo": "mlp", "params": {"widths": [4000]}})
        await house.coordinator.jobs.create(job)
        task = await a.next_task()
        payload = await a.train(task)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await a.submit(task, payload, chunk_bytes=len(payload))
        answer = await a.submit(task, payload, chunk_bytes=1024)

    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert answer.status == pb.SUBMIT_STATUS_ACCEPTED


async def test_payloads_of_updates_go_after_the_commit(open_house: OpenHouse) -> None:
    async with open_house() as house, connected(house.address, "a", "b") as (a, b):
        job = await house.coordinator.jobs.create(make_job(rounds=2))
        task = await a.next_task()
        payload = await a.train(task)
        await a.submit(task, payload)
        digest = hashlib.sha256(payload).hexdigest()
        before = house.coordinator.disk.blobs.digests()
        await b.work(1)
        await a.next_task()
        after = house.coordinator.disk.blobs.digests()
        versions = await house.coordinator.disk.run(house.coordinator.disk.storage.list_versions, job.job_id)

    assert digest in before
    assert after == {digest for version in versions for digest in (version.payload_digest, version.state_digest)}


async def test_uploads_that_trickle_give_way_to_one_that_waits(open_house: OpenHouse) -> None:
    names = [f"slow-{number}" for number in range(16)]  # one more than are received together
    trickle, finish_all = asyncio.Event(), asyncio.Event()

    async def send_slowly(device: ScriptedDevice) -> pb.SubmitUpdateResponse:
        task = await device.next_task()
        payload = await device.train(task)

        async def parts() -> AsyncIterator[pb.SubmitUpdateRequest]:
            yield pb.SubmitUpdateRequest(header=device.header(task, payload))
            yield pb.SubmitUpdateRequest(chunk=pb.UpdateChunk(offset=0, data=payload[:1]))
            await trickle.wait()
            yield pb.SubmitUpdateRequest(chunk=pb.UpdateChunk(offset=1, data=payload[1:2]))
            await finish_all.wait()
            yield pb.SubmitUpdateRequest(chunk=pb.UpdateChunk(offset=2, data=payload[2:]))

        return await device.stub.SubmitUpdate(parts())  # type: ignore[no-any-return]

    async with open_house() as house, connected(house.address, "quick", *names) as (quick, *slow):
        await house.coordinator.jobs.create(make_job(rounds=1, min_devices=17))
        sending = [asyncio.create_task(send_slowly(device)) for device in slow]
        await until(house.coordinator._intake._receiving._places.locked)
        working = asyncio.create_task(quick.work(1))
        await asyncio.sleep(0.1)  # it does not matter whether it has come so far as to wait
        house.clock.offset_s += 10.0
        trickle.set()
        (answer,) = await patiently(working)
        finish_all.set()
        answers = await patiently(asyncio.gather(*sending))

    assert answer.status == pb.SUBMIT_STATUS_ACCEPTED
    assert {each.status for each in answers} == {pb.SUBMIT_STATUS_ACCEPTED}

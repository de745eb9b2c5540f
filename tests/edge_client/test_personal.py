"""What stays on a device: its own tensors, and the model that does best on its own data. Real agents, real gRPC."""

import asyncio
import shutil
from pathlib import Path

import numpy as np
import pytest

from bitfleet.v1 import fleet_pb2 as pb
from bnncore.checkpoint import Checkpoint, load_checkpoint
from bnncore.cli.main import main as bitfleet
from bnncore.codec import get_state_codec, payload_digest
from bnncore.data import open_dataset, write_idx
from bnncore.engine import Engine
from bnncore.federated import EngineShelf, LocalState, LocalTask, LocalTraining, train_locally
from bnncore.federated.local_state import read_local_state
from bnncore.federated.validation import held_out_rows
from bnncore.optimizer import resolve_preset
from bnncore.spec import ModelSpec
from bnncore.state import State
from edge_client.state_dir import StateDir
from tests.edge_client.conftest import Start
from tests.edge_client.device import Device
from tests.edge_client.wire import Coordinator, make_task

LOCAL = ("norm1.beta", "norm2.beta", "norm1.mean")


def personal_task(number: int, *, up_codec: str = "int8", local: tuple[str, ...] = LOCAL) -> pb.Task:
    task, _ = make_task(number, optimizer="latent8")
    task.up_codec = up_codec
    task.training.statistics_batches = 3
    task.training.local_validation = 0.25
    task.local_tensors.extend(local)
    return task


async def train(coordinator: Coordinator, device: Device, task: pb.Task, model: bytes | None = None) -> bytes:
    """Have a task done, and wait until the device has put things in order; give the update."""
    before = len(coordinator.updates)
    await coordinator.give(task, model=model)
    await coordinator.until(lambda: len(coordinator.updates) > before or coordinator.reports)
    assert not coordinator.reports, coordinator.reports
    await device.until(lambda: (device.state.last_task() or {}).get("task_id") == task.task_id)
    return coordinator.updates[-1][1]


def trained_here(task: pb.Task, data_dir: Path, held: LocalState | None) -> bytes:
    training = task.training
    local_task = LocalTask(
        *("bird-1", task.round_number, task.model_digest, task.initial_seed, task.spec_json),
        *(task.down_codec, task.up_codec, tuple(task.classes)),
        LocalTraining(
            *(training.preset, training.optimizer, training.batch_size, training.local_steps, 1.0, training.seed),
            statistics_batches=training.statistics_batches,
            local_validation=training.local_validation,
        ),
        frozenset(task.local_tensors),
    )
    with open_dataset(None, data_dir, split="train") as dataset:
        return train_locally(local_task, None, dataset, EngineShelf(), local_state=held).payload


def held_by(state: StateDir, task: pb.Task) -> LocalState:
    spec = ModelSpec.from_json(task.spec_json)
    return read_local_state(state.local_states.path(task.job_id), spec, frozenset(task.local_tensors))


@pytest.mark.parametrize("codec", ["float32", "float16", "int8", "sign", "flips"])
async def test_a_device_goes_on_with_its_own_tensors(
    coordinator: Coordinator, start: Start, data_dir: Path, codec: str
) -> None:
    device = start(coordinator.port, "--device-id", "bird-1")
    first = await train(coordinator, device, personal_task(1, up_codec=codec))
    held = held_by(device.state, personal_task(1))
    second = await train(coordinator, device, personal_task(2, up_codec=codec))

    assert first == trained_here(personal_task(1, up_codec=codec), data_dir, None)
    assert set(held.own) == {"norm1.beta", "norm2.beta"}
    assert second == trained_here(personal_task(2, up_codec=codec), data_dir, held)
    assert second != trained_here(personal_task(2, up_codec=codec), data_dir, None)


async def test_a_device_killed_between_the_answer_and_its_own_disk_forgets_nothing(
    coordinator: Coordinator, start: Start, data_dir: Path
) -> None:
    device = start(coordinator.port, "--device-id", "bird-1")
    await device.until(lambda: device.state.root.exists())
    blocked = device.state.root / "local-state"
    blocked.write_text("no folder, so nothing can be put into it")
    await coordinator.give(personal_task(1))
    await device.until(lambda: "the update's local state cannot be kept" in device.log)
    assert device.outbox()[-1]["status"] == "ACCEPTED"

    device.kill()
    blocked.unlink()
    device = start(coordinator.port, "--device-id", "bird-1")
    await device.until(lambda: device.state.last_task())
    second = await train(coordinator, device, personal_task(2))

    assert [row["status"] for row in device.outbox()] == ["ACCEPTED", "DUPLICATE", "ACCEPTED"]
    held = held_by(device.state, personal_task(2))
    device.kill()
    # As it would have been anyway: the first update's tensors came to be the device's own.
    device = start(coordinator.port, "--device-id", "bird-1", state="undisturbed")
    await train(coordinator, device, personal_task(1))
    assert await train(coordinator, device, personal_task(2)) == second
    undisturbed = held_by(device.state, personal_task(2))
    assert all(np.array_equal(held.own[name], undisturbed.own[name]) for name in held.own)


async def test_a_late_update_leaves_a_devices_own_tensors_as_they_were(coordinator: Coordinator, start: Start) -> None:
    device = start(coordinator.port)
    await train(coordinator, device, personal_task(1))
    path = device.state.local_states.path("job")
    kept = path.read_bytes()

    coordinator.answer = lambda header: pb.SubmitUpdateResponse(status=pb.SUBMIT_STATUS_LATE, reason="late")
    await train(coordinator, device, personal_task(2))

    assert path.read_bytes() == kept


async def test_own_tensors_of_another_choice_are_left_out(
    coordinator: Coordinator, start: Start, data_dir: Path
) -> None:
    device = start(coordinator.port, "--device-id", "bird-1")
    await train(coordinator, device, personal_task(1))
    other = personal_task(2, local=("norm1.beta",))

    payload = await train(coordinator, device, other)

    assert payload == trained_here(other, data_dir, None)
    assert "the local state of the last update is left out" in device.log


# The best model


def judged_task(number: int, model: bytes, *, job_id: str = "job") -> pb.Task:
    task, _ = make_task(number, optimizer="latent8", from_seed=False, job_id=job_id)
    task.training.statistics_batches = 3
    task.training.local_validation = 0.25
    task.model_digest, task.model_bytes = payload_digest(model), len(model)
    return task


@pytest.fixture
def models(data_dir: Path) -> dict[str, bytes]:
    """Models of known worth: one that has learnt, and the same with its answers turned round."""
    task, _ = make_task(optimizer="latent8")
    spec = ModelSpec.from_json(task.spec_json)
    engine = Engine(spec, batch_size=10, preset=resolve_preset("bitfleet", "latent8"), seed=1)
    engine.initialise(1)
    with open_dataset(None, data_dir, split="train") as dataset:
        for step in range(300):
            batch = (np.arange(10, dtype=np.uint32) + 10 * step) % 60
            dataset.read(batch, engine.input)
            engine.labels[:] = np.array([1, 2, 0])[dataset.labels[batch]]  # a, b, c among c, a, b
            engine.step()
    good = engine.state()
    wrong = {**good, "dense2.weight": np.roll(good["dense2.weight"], 1, axis=0)}
    codec = get_state_codec("int8")
    return {name: codec.encode(spec, state, kind="model") for name, state in (("good", good), ("wrong", wrong))}


def best_of(device: Device, job_id: str = "job") -> Checkpoint:
    return load_checkpoint(device.state.best_models.path(job_id))


async def test_a_device_keeps_its_last_model_when_the_new_one_does_worse_here(
    coordinator: Coordinator, start: Start, models: dict[str, bytes], data_dir: Path
) -> None:
    device = start(coordinator.port, "--device-id", "bird-1")
    kept = []
    for number, name in enumerate(["wrong", "good", "wrong", "good"], start=1):
        await train(coordinator, device, judged_task(number, models[name]), models[name])
        kept.append(best_of(device).extra["round_number"])

    # A model that does worse is not kept, one that does as well is; training starts from the task's model anyway.
    assert kept == [1, 2, 2, 4]
    with open_dataset(None, data_dir, split="train") as dataset:
        held_out = int(held_out_rows(dataset.keys(), 0.25, "bird-1").sum())
    (best,) = device.ask("status")["best_models"]
    assert (best["job_id"], best["round_number"], best["validation_examples"]) == ("job", 4, held_out)
    assert best["accuracy"] == 100.0
    assert [header.model_digest for header, _ in coordinator.updates] == [
        payload_digest(models[name]) for name in ("wrong", "good", "wrong", "good")
    ]


async def test_the_best_model_is_a_checkpoint_with_the_devices_own_tensors(
    coordinator: Coordinator, start: Start, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_dataset(None, data_dir, split="train") as dataset:  # in the order of the job's classes, for `evaluate`
        images = np.empty((60, 64), np.uint8)
        dataset.read(np.arange(60, dtype=np.uint32), images)
        labels = np.array([1, 2, 0])[dataset.labels]
        part, rows = data_dir.parent / "part", held_out_rows(dataset.keys(), 0.25, "bird-1")
    write_idx(part, images[rows].reshape(-1, 8, 8), labels[rows], "test", classes=list("cab"))
    device = start(coordinator.port, "--device-id", "bird-1")
    await train(coordinator, device, personal_task(1))
    own = held_by(device.state, personal_task(1)).own
    device.state.best_models.path("job").unlink()
    await train(coordinator, device, personal_task(2))
    path = device.state.best_models.path("job")

    status = await asyncio.to_thread(
        bitfleet, ["evaluate", str(path), "--dataset", "idx", "--data", str(part), "--json", "-"]
    )

    state: State = best_of(device).state
    assert np.array_equal(state["norm1.beta"], own["norm1.beta"])
    (best,) = device.ask("status")["best_models"]
    assert status in (0, None)
    assert f'"accuracy": {best["accuracy"]}' in capsys.readouterr().out


async def test_best_models_of_the_latest_jobs_are_kept_and_a_damaged_one_is_replaced(
    coordinator: Coordinator, start: Start, models: dict[str, bytes]
) -> None:
    device = start(coordinator.port)
    await train(coordinator, device, judged_task(1, models["good"]), models["good"])
    path = device.state.best_models.path("job")
    for number in range(8):  # as eight other jobs would have left them
        shutil.copy(path, device.state.best_models.path(f"older-{number}"))
    path.write_bytes(path.read_bytes()[:-1])

    await train(coordinator, device, judged_task(2, models["wrong"]), models["wrong"])

    assert "the best model so far is left out" in device.log
    assert best_of(device).extra["round_number"] == 2
    assert len(device.state.best_models.newest_first()) == 8
    assert device.state.best_models.newest_first()[0] == path

"""Local training as a pure function: of the task, the model and the data, and of nothing else."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bnncore.codec import get_state_codec, payload_digest
from bnncore.data import Dataset, open_dataset, write_idx
from bnncore.engine import Engine
from bnncore.errors import ModelMissingError, TaskDeclinedError, TaskFailedError
from bnncore.federated import EngineShelf, LocalTask, LocalTraining, train_locally
from bnncore.zoo import mlp

SPEC = mlp(input_shape=(4, 4), widths=(24,), classes=3)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (50, 4, 4), dtype=np.uint8)
    write_idx(tmp_path, images, np.arange(50) % 3, "train", classes=["a", "b", "c"])
    return open_dataset("idx", tmp_path, split="train")


def make_task(device_id: str = "bird-1", *, steps: int = 9, batch_size: int = 20) -> tuple[LocalTask, bytes]:
    engine = Engine(SPEC, batch_size=1)
    engine.initialise(7)
    model = get_state_codec("int8").encode(SPEC, engine.state(), kind="model")
    task = LocalTask(
        device_id=device_id,
        round_number=2,
        model_digest=payload_digest(model),
        initial_seed=7,
        spec_json=SPEC.to_json(),
        down_codec="int8",
        up_codec="int8",
        classes=("c", "a", "b"),
        training=LocalTraining("bitfleet", "", batch_size, steps, 1.0, seed=3),
    )
    return task, model


def test_an_engine_that_served_another_task_gives_the_same_update(dataset: Dataset) -> None:
    task, model = make_task()
    other, _ = make_task("bird-2", steps=23)
    shelf = EngineShelf()

    alone = train_locally(task, model, dataset, EngineShelf())
    train_locally(other, model, dataset, shelf)
    after_another = train_locally(task, model, dataset, shelf)
    from_seed = train_locally(task, None, dataset, shelf)

    assert after_another.payload == alone.payload
    assert from_seed.payload == alone.payload
    assert (after_another.loss, after_another.accuracy) == (alone.loss, alone.accuracy)


def test_the_shelf_keeps_its_engine_only_for_tasks_of_the_same_size(dataset: Dataset) -> None:
    training = make_task()[0].training
    shelf = EngineShelf()

    first = shelf.take(SPEC, training, 20)
    again = shelf.take(SPEC, replace(training, local_steps=1, step_scale=0.5), 20)
    smaller = shelf.take(SPEC, training, 10)

    assert again is first
    assert len(smaller.labels) == 10


def test_devices_and_rounds_learn_different_things(dataset: Dataset) -> None:
    task, model = make_task()
    shelf = EngineShelf()

    tasks = (task, replace(task, device_id="bird-2"), replace(task, round_number=3))
    payloads = {train_locally(each, model, dataset, shelf).payload for each in tasks}

    assert len(payloads) == 3


def test_every_step_is_told(dataset: Dataset) -> None:
    task, model = make_task(steps=4)
    told: list[tuple[int, int]] = []

    update = train_locally(task, model, dataset, EngineShelf(), lambda done, total: told.append((done, total)))

    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert (update.steps, update.num_examples) == (4, 50)


def test_what_does_not_fit_is_refused_by_name(dataset: Dataset) -> None:
    task, model = make_task()

    with pytest.raises(TaskDeclinedError, match="does not name: c"):
        train_locally(replace(task, classes=("a", "b", "x")), model, dataset, EngineShelf())
    with pytest.raises(ModelMissingError, match="cached payload"):
        train_locally(replace(task, model_digest="0" * 64), model, dataset, EngineShelf())
    with pytest.raises(ModelMissingError, match="made from the seed"):
        train_locally(replace(task, initial_seed=8), None, dataset, EngineShelf())
    with pytest.raises(TaskFailedError, match="local_steps"):
        LocalTraining("bitfleet", "", 10, 0, 1.0, seed=0)
    with pytest.raises(TaskFailedError, match="finite"):
        LocalTraining("bitfleet", "", 10, 1, float("nan"), seed=0)


def test_a_proximal_task_stays_closer_to_its_model(dataset: Dataset) -> None:
    task, model = make_task(steps=40)
    start = get_state_codec("int8").decode(SPEC, model, kind="model")["dense1.weight"]
    moved = []
    for mu in (0.0, 1.0, 10.0):
        pulled = replace(task, training=replace(task.training, proximal_mu=mu))
        update = train_locally(pulled, model, dataset, EngineShelf())
        trained = get_state_codec("int8").decode(SPEC, update.payload, kind="update")["dense1.weight"]
        moved.append(int(np.abs(trained.astype(int) - start).sum()))
        assert train_locally(pulled, model, dataset, EngineShelf()).payload == update.payload

    assert moved[0] > moved[1] > moved[2] > 0

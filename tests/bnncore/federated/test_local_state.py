"""Tensors that stay on a device: left out of what travels, trained on from where they were, kept in a file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnncore.codec import CODECS, get_codec, get_difference_codec, get_state_codec, payload_digest
from bnncore.data import Dataset, open_dataset, write_idx
from bnncore.engine import Engine
from bnncore.errors import IncompatibleError, PayloadError, TaskFailedError
from bnncore.federated import EngineShelf, LocalState, LocalTask, LocalTraining, LocalUpdate, train_locally
from bnncore.federated.local_state import read_local_state, with_own_tensors, write_local_state
from bnncore.federated.replica import apply_step, follow_steps, make_step
from bnncore.state import State, to_float32
from bnncore.zoo import mlp

SPEC = mlp(input_shape=(4, 4), widths=(24, 24), classes=3)
LOCAL = frozenset({"dense3.weight", "norm1.beta", "norm2.beta", "norm2.mean"})
KEPT = {"dense3.weight", "norm1.beta", "norm2.beta"}
"""Statistics are taken anew instead."""


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    random = np.random.default_rng(0)
    labels = np.arange(90) % 3
    images = random.integers(0, 200, (90, 16), dtype=np.uint8)
    for row, label in enumerate(labels):
        images[row, label * 5 : label * 5 + 5] += 50
    write_idx(tmp_path, images.reshape(-1, 4, 4), labels, "train", classes=["a", "b", "c"])
    return open_dataset("idx", tmp_path, split="train")


def make_task(**changes: Any) -> LocalTask:
    model = make_model(initial(7))
    task = LocalTask(
        device_id="bird-1",
        round_number=2,
        model_digest=payload_digest(model),
        initial_seed=7,
        spec_json=SPEC.to_json(),
        down_codec="int8",
        up_codec="int8",
        classes=("a", "b", "c"),
        training=LocalTraining("bitfleet", "", 20, 30, 1.0, seed=3, statistics_batches=2),
        local_tensors=LOCAL,
    )
    return replace(task, **changes)


def initial(seed: int) -> State:
    engine = Engine(SPEC, batch_size=1)
    engine.initialise(seed)
    return engine.state()


def make_model(state: State) -> bytes:
    return get_codec("int8").encode(SPEC, state, kind="model")


def train(task: LocalTask, dataset: Dataset, held: LocalState | None = None, model: bytes | None = None) -> LocalUpdate:
    return train_locally(task, model, dataset, EngineShelf(), local_state=held)


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_local_tensors_are_kept_and_not_sent(dataset: Dataset, codec: str) -> None:
    task = make_task(up_codec=codec)
    whole = train(replace(task, local_tensors=frozenset()), dataset)

    update = train(task, dataset)

    sent = get_codec(codec).decode(SPEC, update.payload, kind="update", local=LOCAL)
    assert set(sent) == set(SPEC.tensor_shapes()) - LOCAL
    assert len(update.payload) < len(whole.payload)
    with pytest.raises(PayloadError, match="must be made for"):
        get_codec(codec).decode(SPEC, update.payload, kind="update")
    assert update.local_state is not None
    assert set(update.local_state.own) == KEPT
    # The first time they start from the model's, so what is trained is what would have been trained anyway.
    trained = get_state_codec("float32").decode(SPEC, train(
        replace(task, up_codec="float32", local_tensors=frozenset()), dataset).payload, kind="update")  # fmt: skip
    for name in KEPT:
        assert np.array_equal(to_float32(update.local_state.own[name]), trained[name])
    is_difference = get_codec(codec).is_difference
    assert set(update.local_state.feedback) == ({"dense1.weight", "dense2.weight"} if is_difference else set())


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_the_next_training_starts_from_the_devices_own(dataset: Dataset, codec: str) -> None:
    task = make_task(up_codec=codec)
    held = train(task, dataset).local_state
    assert held is not None
    merged = make_model(with_own_tensors(SPEC, {n: a for n, a in initial(7).items() if n in _parameters()}, held.own))
    expected = train(replace(task, model_digest=payload_digest(merged)), dataset, LocalState(held.feedback), merged)

    update = train(task, dataset, held)

    assert update.payload == expected.payload
    assert update.payload != train(task, dataset).payload
    assert update.local_state is not None
    assert expected.local_state is not None
    for name in KEPT:
        assert np.array_equal(update.local_state.own[name], expected.local_state.own[name])


def _parameters() -> set[str]:
    return {tensor.name for tensor in SPEC.tensors if not tensor.is_statistic}


def test_a_model_of_other_dtypes_takes_a_devices_own_weights(dataset: Dataset) -> None:
    task = make_task()
    task = replace(task, training=replace(task.training, optimizer="adam"))
    model = make_model(initial(7))
    held = train(task, dataset, model=model).local_state
    assert held is not None
    assert held.own["dense3.weight"].dtype == np.float32

    again = train(task, dataset, held, model)

    assert again.local_state is not None
    spread = {name: to_float32(array) for name, array in initial(7).items()}
    fitted = with_own_tensors(SPEC, spread, {"dense3.weight": np.full((3, 24), -127, np.int8)})
    assert fitted["dense3.weight"].dtype == np.float32
    assert (fitted["dense3.weight"] == -1).all()


def test_an_update_of_statistics_leaves_local_ones_out_and_changes_nothing_here(dataset: Dataset) -> None:
    task = make_task(up_codec="float32")
    closing = replace(task, training=replace(task.training, local_steps=0))

    update = train(closing, dataset, train(task, dataset).local_state)

    sent = get_codec("float32").decode(SPEC, update.payload, kind="statistics", local=LOCAL)
    assert set(sent) == {tensor.name for tensor in SPEC.tensors if tensor.is_statistic} - {"norm2.mean"}
    assert update.local_state is None


@pytest.mark.parametrize("codec", ["sign", "flips"])
def test_a_step_leaves_local_tensors_where_they_are(codec: str) -> None:
    names = get_difference_codec(codec)
    replica = {name: array for name, array in initial(7).items() if name in _parameters()}
    rng = np.random.default_rng(1)
    master = {
        name: np.clip(to_float32(array) + rng.normal(0, 0.2, array.shape), -1, 1).astype(np.float32)
        for name, array in replica.items()
    }

    step = make_step(SPEC, master, replica, names, LOCAL)
    payload = names.encode(SPEC, step, kind="step", local=LOCAL)
    moved = get_state_codec("int8").decode(
        SPEC, follow_steps(SPEC, make_model(replica), [payload], codec, LOCAL), kind="model"
    )

    assert len(payload) < len(names.encode(SPEC, make_step(SPEC, master, replica, names), kind="step"))
    assert list(moved) == list(replica)
    assert all(np.array_equal(moved[name], apply_step(replica, step)[name]) for name in moved)
    assert {name for name in moved if np.array_equal(moved[name], replica[name])} == KEPT
    with pytest.raises(IncompatibleError):
        follow_steps(SPEC, make_model(replica), [payload], codec, LOCAL ^ {"norm1.beta", "norm3.beta"})


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_a_payload_of_other_local_tensors_is_refused_though_its_size_fits(dataset: Dataset, codec: str) -> None:
    update = train(make_task(up_codec=codec, local_tensors=frozenset({"norm1.beta"})), dataset)

    with pytest.raises(PayloadError, match="must be made for"):
        get_codec(codec).decode(SPEC, update.payload, kind="update", local=frozenset({"norm2.beta"}))
    for length in range(0, len(update.payload), 53):
        with pytest.raises(PayloadError):
            get_codec(codec).decode(SPEC, update.payload[:length], kind="update", local=frozenset({"norm1.beta"}))


@pytest.mark.parametrize("codec", ["int8", "sign"])
def test_a_local_state_comes_back_from_its_file_and_a_damaged_file_is_refused(
    dataset: Dataset, tmp_path: Path, codec: str
) -> None:
    held = train(make_task(up_codec=codec), dataset).local_state
    assert held is not None
    path = tmp_path / "state"
    write_local_state(path, SPEC, held, LOCAL)

    read = read_local_state(path, SPEC, LOCAL)

    for kept, found in ((held.feedback, read.feedback), (held.own, read.own)):
        assert set(kept) == set(found)
        assert all(np.array_equal(kept[name], found[name]) for name in kept)
    with pytest.raises(PayloadError, match="must be of"):
        read_local_state(path, SPEC, LOCAL - {"norm1.beta"})
    with pytest.raises(PayloadError, match="must be of"):
        read_local_state(path, mlp(input_shape=(4, 4), widths=(24, 23), classes=3), LOCAL)
    data = path.read_bytes()
    for size in range(0, len(data), 97):
        path.write_bytes(data[:size])
        with pytest.raises(IncompatibleError):
            read_local_state(path, SPEC, LOCAL)


def test_tensors_that_the_network_does_not_have_are_told(dataset: Dataset) -> None:
    with pytest.raises(TaskFailedError, match=r"dense9\.weight"):
        train(make_task(local_tensors=frozenset({"dense9.weight"})), dataset)

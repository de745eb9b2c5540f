"""The validation part: the same samples whatever is appended, never trained on, and scored as the engine scores."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bnncore.codec import PayloadKind, get_codec, get_state_codec, payload_digest
from bnncore.data import Dataset, open_dataset, write_idx
from bnncore.engine import Engine
from bnncore.errors import TaskFailedError
from bnncore.federated import EngineShelf, LocalScore, LocalTask, LocalTraining, train_locally
from bnncore.federated.validation import held_out_rows, parts_of
from bnncore.predictor import Predictor
from bnncore.state import State
from bnncore.zoo import mlp

SPEC = mlp(input_shape=(4, 4), widths=(24,), classes=3)
LABELS = np.arange(200) % 3
FRACTION = 0.25


def images() -> NDArray[np.uint8]:
    random = np.random.default_rng(0)
    images = random.integers(0, 200, (200, 16), dtype=np.uint8)
    for row, label in enumerate(LABELS):
        images[row, label * 5 : label * 5 + 5] += 50
    return images.reshape(-1, 4, 4)


def open_images(folder: Path, images: NDArray[np.uint8], labels: NDArray[np.int64] = LABELS) -> Dataset:
    folder.mkdir(exist_ok=True)
    write_idx(folder, images, labels, "train", classes=["a", "b", "c"])
    return open_dataset("idx", folder, split="train")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return open_images(tmp_path / "data", images())


def make_task(*, steps: int = 9, fraction: float = FRACTION, up_codec: str = "int8") -> tuple[LocalTask, bytes]:
    engine = Engine(SPEC, batch_size=1)
    engine.initialise(7)
    model = get_codec("int8").encode(SPEC, engine.state(), kind="model")
    training = LocalTraining(
        "bitfleet", "", 20, steps, 1.0, seed=3, statistics_batches=3, local_validation=fraction
    )  # fmt: skip
    task = LocalTask(
        device_id="bird-1",
        round_number=2,
        model_digest=payload_digest(model),
        initial_seed=7,
        spec_json=SPEC.to_json(),
        down_codec="int8",
        up_codec=up_codec,
        classes=("c", "a", "b"),
        training=training,
    )
    return task, model


def test_the_part_is_a_function_of_keys_fraction_and_device() -> None:
    keys = np.arange(5000, dtype=np.uint64)
    part = held_out_rows(keys, 0.1, "bird-1")

    assert 400 < part.sum() < 600
    assert not (part & ~held_out_rows(keys, 0.2, "bird-1")).any()
    assert not np.array_equal(held_out_rows(keys, 0.1, "bird-2"), part)
    assert not held_out_rows(keys, 0.0, "bird-1").any()


@given(st.data())
def test_a_sample_stays_where_it_is_whatever_is_added_taken_away_or_reordered(data: st.DataObject) -> None:
    keys = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=60, unique=True))
    others = data.draw(st.permutations(keys))[: data.draw(st.integers(1, len(keys)))]
    fraction = data.draw(st.sampled_from([0.05, 0.25, 0.5]))

    before = dict(zip(keys, held_out_rows(np.array(keys, np.uint64), fraction, "bird-1"), strict=True))
    after = dict(zip(others, held_out_rows(np.array(others, np.uint64), fraction, "bird-1"), strict=True))

    # Only where all that is left would be held out, one of it is trained on.
    moved = [key for key in others if before[key] != after[key]]
    assert not moved or (len(moved) == 1 and sum(after.values()) == len(others) - 1)


def test_equal_samples_lie_in_the_same_part_and_a_moved_file_keeps_its_part(tmp_path: Path) -> None:
    once = images()
    with (
        open_images(tmp_path / "once", once) as dataset,
        open_images(tmp_path / "back", once[::-1]) as backwards,
        dataset.subset(np.array([7, 3, 7])) as some,
    ):
        keys = dataset.keys()
        assert len(set(keys.tolist())) == 200
        assert np.array_equal(backwards.keys()[::-1], keys)
        assert np.array_equal(some.keys(), keys[[7, 3, 7]])
        assert np.array_equal(dataset.keys(), keys)


def test_something_is_always_left_to_train_on() -> None:
    names = [f"bird-{number}" for number in range(50)]

    assert not any(held_out_rows(np.arange(1, dtype=np.uint64), 0.99, name).any() for name in names)
    assert any(held_out_rows(np.arange(2, dtype=np.uint64), 0.99, name).any() for name in names)


def test_the_parts_are_the_whole(dataset: Dataset) -> None:
    with parts_of(dataset, FRACTION, "bird-1") as (training, validation):
        assert validation is not None
        assert training.num_examples + validation.num_examples == 200
        rows = np.empty((200, 16), np.uint8)
        training.read(np.arange(training.num_examples, dtype=np.uint32), rows[: training.num_examples])
        validation.read(np.arange(validation.num_examples, dtype=np.uint32), rows[training.num_examples :])
    assert sorted(map(bytes, rows)) == sorted(map(bytes, images().reshape(200, 16)))


def test_what_is_held_out_is_not_trained_on(tmp_path: Path, dataset: Dataset) -> None:
    task, model = make_task(steps=40)
    held_out = held_out_rows(dataset.keys(), FRACTION, "bird-1")
    other, others = LABELS.copy(), LABELS.copy()
    other[held_out] = (other[held_out] + 1) % 3
    others[np.flatnonzero(~held_out)[5]] ^= 1

    update = train_locally(task, model, dataset, EngineShelf())
    unseen = train_locally(task, model, open_images(tmp_path / "unseen", images(), other), EngineShelf())
    seen = train_locally(task, model, open_images(tmp_path / "seen", images(), others), EngineShelf())

    assert unseen.payload == update.payload
    assert unseen.score != update.score
    assert seen.payload != update.payload
    assert update.num_examples == 200 - held_out.sum()


def test_an_evaluation_leaves_no_trace_in_training(dataset: Dataset) -> None:
    task, model = make_task(steps=40)
    without = replace(task, training=replace(task.training, local_validation=0.0))

    update = train_locally(task, model, dataset, EngineShelf())
    with parts_of(dataset, FRACTION, "bird-1") as (training, _):
        alone = train_locally(without, model, training, EngineShelf())

    assert alone.payload == update.payload
    assert alone.score is None


@pytest.mark.parametrize(("steps", "codec"), [(9, "int8"), (0, "float32")])
def test_the_score_is_of_the_tasks_model_with_statistics_just_taken(dataset: Dataset, steps: int, codec: str) -> None:
    task, model = make_task(steps=steps, up_codec=codec)
    told: list[tuple[LocalScore, State]] = []

    update = train_locally(
        task, model, dataset, EngineShelf(),
        on_score=lambda score, state: told.append((score, {name: array.copy() for name, array in state.items()})),
    )  # fmt: skip

    ((score, state),) = told
    assert update.score == score
    kind: PayloadKind = "update" if steps else "statistics"
    statistics = get_state_codec(codec).decode(SPEC, update.payload, kind=kind)
    expected = {**get_state_codec("int8").decode(SPEC, model, kind="model"),
                **{tensor.name: statistics[tensor.name] for tensor in SPEC.tensors if tensor.is_statistic}}  # fmt: skip
    assert all(np.array_equal(state[name], expected[name]) for name in expected)
    predictor = Predictor(SPEC, expected, batch_size=200)
    with parts_of(dataset, FRACTION, "bird-1") as (_, validation):
        assert validation is not None
        count = validation.num_examples
        validation.read(np.arange(count, dtype=np.uint32), predictor.input[:count])
        predictor.labels[:count] = np.array([1, 2, 0])[validation.labels]  # a, b, c among c, a, b
    whole = predictor.evaluate_batch(count)
    assert (score.examples, score.correct) == (count, whole.correct)
    assert score.loss == pytest.approx(whole.loss, rel=1e-6)


def test_a_part_without_statistics_or_beyond_the_data_is_refused() -> None:
    with pytest.raises(TaskFailedError, match="needs statistics_batches"):
        LocalTraining("bitfleet", "", 10, 1, 1.0, seed=0, local_validation=0.1)
    with pytest.raises(TaskFailedError, match=r"\[0, 1\)"):
        LocalTraining("bitfleet", "", 10, 1, 1.0, seed=0, statistics_batches=1, local_validation=1.0)

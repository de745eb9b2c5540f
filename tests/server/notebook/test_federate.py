"""``federate`` as a notebook calls it: real coordinator, real training, inside a running event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import matplotlib as mpl
import numpy as np
import pytest
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bnncore import evaluate, load_checkpoint, open_dataset
from bnncore.data import Dataset
from bnncore.errors import ConfigurationError
from bnncore.training import EpochResult, TrainResult
from server.cli import main
from server.errors import InvalidJobError
from server.notebook import History, federate
from server.notebook.background import run_beside
from server.simulate.errors import SimulationError
from server.strategies import STRATEGIES, ServerOptimizer
from server.strategies.server_optimizer import Slots

MODEL: dict[str, Any] = {"zoo": "mlp", "params": {"widths": [32]}}
SMALL: dict[str, Any] = {"model": MODEL, "rounds": 2, "local_steps": 10, "batch_size": 20, "progress": False}


@dataclass(frozen=True)
class Nesterov(ServerOptimizer):
    """A strategy that no package knows."""

    name: ClassVar[str] = "test_nesterov"

    momentum: float = 0.5

    def slots(self) -> dict[str, float]:
        return {"velocity": 0.0}

    def step(self, difference: NDArray[np.float64], memory: Slots) -> NDArray[np.float64]:
        velocity = self.momentum * memory["velocity"].astype(np.float64) + difference
        memory["velocity"][:] = velocity
        return self.momentum * velocity + difference


@pytest.fixture(scope="module")
def digits() -> Iterator[tuple[Dataset, Dataset]]:
    with open_dataset("digits", None, split="train") as train, open_dataset("digits", None, split="test") as test:
        yield train, test


def of_classes(dataset: Dataset, *numbers: int) -> Dataset:
    """An owner's own data: some digits, called by their names alone."""
    chosen = np.flatnonzero(np.isin(dataset.labels, numbers)).astype(np.uint32)
    labels = np.searchsorted(numbers, dataset.labels[chosen]).astype(np.uint8)
    names = tuple(dataset.classes[number] for number in numbers)
    return Dataset("own", dataset.rows, labels, classes=names, input_shape=dataset.input_shape, order=chosen)


async def test_it_has_the_bits_of_a_simulation_and_leaves_the_running_loop_alone(
    digits: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    train, test = digits
    options = "--dataset digits --widths 32 --devices 5 --cohort 3 --alpha 0.5 --seed 7 --rounds 2 --local-steps 10"
    options += f" --batch-size 20 --tensorboard {tmp_path / 'cli'} --json {tmp_path / 'simulation.json'}"
    loop = asyncio.get_running_loop()
    code = await asyncio.to_thread(main, ["simulate", *options.split()])

    split: dict[str, Any] = {"dataset": train, "num_devices": 5, "alpha": 0.5, "cohort_size": 3, "seed": 7}
    history = federate(**SMALL, **split, evaluation=test, threads=1, name="simulation")  # messages hold the name

    assert asyncio.get_running_loop() is loop
    assert code == 0
    simulated = json.loads((tmp_path / "simulation.json").read_text())
    assert history.digest == simulated["digest"]
    assert history.to_dict()["accuracy"] == simulated["accuracy_by_round"]
    shares = history.job.spec.num_binary_weights * 3 * 2
    assert 8 * history.up_bytes / shares == simulated["bits_per_weight_up"]
    assert 8 * history.down_bytes / shares == simulated["bits_per_weight_down"]
    history.to_tensorboard(tmp_path / "notebook")
    for folder in ("cli", "notebook"):
        events = EventAccumulator(str(tmp_path / folder)).Reload()
        read = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        for tag, column in (("accuracy/evaluation", "accuracy"), ("traffic/bytes up", "up_bytes")):
            assert read[tag] == [
                (number, pytest.approx(value)) for number, value in enumerate(history.to_dict()[column], 1)
            ]


def test_devices_with_data_and_a_strategy_of_their_own(digits: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    train, test = digits
    with of_classes(train, 0, 1) as first, of_classes(train, 1, 2) as second, of_classes(test, 0, 1, 2) as held_out:
        history = federate(datasets=[first, second], evaluation=held_out, strategy=Nesterov(0.25), **SMALL)
        again = federate(datasets=[first, second], evaluation=held_out, strategy="test_nesterov", **SMALL)
        job = {"name": "plain", "model": MODEL, "rounds": 2, "local_steps": 10}
        plain = federate(job, datasets=[first, second], progress=False)

        assert history.job.strategy_params == {"momentum": 0.25}
        assert history.job.classes == ["0", "1", "2"]
        assert len({history.digest, again.digest, plain.digest}) == 3
        assert evaluate(history.predictor(), held_out).accuracy == pytest.approx(history.accuracy)
    assert plain.accuracy is None
    assert history.save(tmp_path / "model.safetensors") == history.digest
    assert load_checkpoint(tmp_path / "model.safetensors").extra["classes"] == ["0", "1", "2"]
    del STRATEGIES["test_nesterov"]


@pytest.fixture(scope="module")
def history(digits: tuple[Dataset, Dataset]) -> History:
    train, test = digits
    return federate(dataset=train, num_devices=2, evaluation=test, **{**SMALL, "rounds": 1})


def test_it_is_drawn_and_told(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mpl.rcParams, "backend", "Agg")
    table = history.to_dict()

    axes = history.plot(label="fedavg")
    assert history.plot(label="once more", axes=axes) is axes

    assert [line.get_label() for line in axes.lines] == ["fedavg", "once more"]
    assert list(np.asarray(axes.lines[0].get_ydata())) == table["accuracy"]
    assert axes.get_ylabel() == "accuracy, %"
    assert [line.get_label() for line in history.plot("loss", "training_loss").lines] == ["loss", "training loss"]
    assert {len(column) for column in table.values()} == {1}
    assert "accuracy" in history._repr_html_()
    assert "local accuracy" not in history._repr_html_()  # nothing is known of it
    long = replace(history, rounds=history.rounds * 20)
    assert long._repr_html_().count("<tr>") == 1 + 12 + 1
    assert str(history).startswith("notebook: 1 rounds of fedavg with 2 devices, accuracy ")
    for columns, complaint in [
        (("speed",), "columns to draw are accuracy, .* not 'speed'"),
        (("loss", "seconds"), "different units"),
        (("local_accuracy",), "nothing to draw"),
    ]:
        with pytest.raises(ConfigurationError, match=complaint):
            history.plot(*columns)
    epochs = (EpochResult(1, 10, 2.0, 50.0, 0.1), EpochResult(2, 10, 1.0, 75.0, 0.1))
    axes = TrainResult(epochs, 20, None).plot("accuracy")
    assert [np.asarray(data).tolist() for data in axes.lines[0].get_data()] == [[1, 2], [50.0, 75.0]]
    assert axes.get_ylabel() == "training accuracy, %"
    for result, column, complaint in [(epochs, "speed", "not 'speed'"), ((), "loss", "nothing to draw")]:
        with pytest.raises(ConfigurationError, match=complaint):
            TrainResult(result, 0, None).plot(column)
    from matplotlib import pyplot

    pyplot.close("all")


def test_what_cannot_be_is_told(digits: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    train = digits[0]
    other = Dataset("other", train.rows, train.labels, classes=train.classes, input_shape=(64,))
    (tmp_path / "cut").write_bytes(bytes(64 * 100))
    cut = Dataset(
        "cut",
        replace(train.rows, path=tmp_path / "cut", offset=0),
        train.labels,
        classes=train.classes,
        input_shape=train.input_shape,
    )
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({}, ConfigurationError, "either datasets"),
        ({"datasets": [train], "dataset": train}, ConfigurationError, "either datasets"),
        ({"datasets": []}, ConfigurationError, "one device at least"),
        ({"datasets": [train, other]}, ConfigurationError, "device 1 .* do not fit the job: its samples have shape"),
        ({"dataset": train, "attack": "negate"}, ConfigurationError, "need each other"),
        ({"dataset": train, "evaluation": other}, InvalidJobError, "evaluation set does not fit"),
        ({"dataset": train, "local_step": 1}, InvalidJobError, "local_step"),
        ({"dataset": train, "strategy": "fedbest"}, InvalidJobError, "strategy must be one of"),
        ({"datasets": [train, cut]}, SimulationError, "a device failed"),
    ]
    for arguments, kind, complaint in wrong:
        with pytest.raises(kind, match=complaint):
            federate(**{**SMALL, "local_steps": 200, **arguments})
    other.close()
    cut.close()


def test_ctrl_c_ends_it_in_order() -> None:
    ended = []

    async def endless(tell: Any) -> None:
        tell("round 1")
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append("cleared up")

    def stop(news: str) -> None:
        raise KeyboardInterrupt(news)

    with pytest.raises(KeyboardInterrupt, match="round 1"):
        run_beside(endless, stop)
    assert ended == ["cleared up"]

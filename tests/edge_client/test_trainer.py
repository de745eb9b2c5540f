"""The trainer as a process of its own: what it reads, what it leaves, what it says."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnncore.codec import get_state_codec, payload_digest
from bnncore.data import open_dataset
from bnncore.engine import Engine, permutation
from bnncore.optimizer import resolve_preset
from bnncore.seeds import derive_seed
from bnncore.spec import ModelSpec
from edge_client.child import TASK_FILE, UPDATE_FILE
from tests.edge_client.wire import make_task
from tests.patience import LIMIT_S

NO_STEPS = {"preset": "bitfleet", "optimizer": "", "batch_size": 1, "local_steps": 0, "step_scale": 1.0, "seed": 0}


def describe(
    data_dir: Path, *, optimizer: str = "latent8m", steps: int = 20, widths: tuple[int, ...] = (16,)
) -> tuple[dict[str, Any], bytes]:
    """A task as the worker writes it, and its model."""
    task, model = make_task(optimizer=optimizer, steps=steps, widths=widths)
    fields = ("preset", "optimizer", "batch_size", "local_steps", "step_scale", "seed")
    description = {
        "job_id": "job",
        "device_id": "bird-1",
        "round_number": 4,
        "model_digest": task.model_digest,
        "model_path": None,
        "step_paths": [],
        "local_state_path": None,
        "best_path": None,
        "max_memory": 1 << 40,
        "plan_only": False,
        "initial_seed": task.initial_seed,
        "spec_json": task.spec_json,
        "down_codec": "int8",
        "up_codec": "int8",
        "classes": list(task.classes),
        "local_tensors": [],
        "input_range": None,
        "summed": None,
        "training": {field: getattr(task.training, field) for field in fields},
        "data": {"name": None, "root": str(data_dir)},
    }
    return description, model


def train_all(folders: dict[Path, dict[str, Any]]) -> list[dict[str, Any]]:
    """Run one trainer over tasks by folder; give its events."""
    for folder, description in folders.items():
        folder.mkdir(exist_ok=True)
        (folder / TASK_FILE).write_text(json.dumps(description))
    done = subprocess.run(
        [sys.executable, "-m", "edge_client.trainer"],
        input="".join(json.dumps(str(folder)) + "\n" for folder in folders).encode(),
        stdout=subprocess.PIPE,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0
    ready, *events = (json.loads(line) for line in done.stdout.splitlines())
    assert ready == {"ready": True}
    return events


def train(folder: Path, description: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a trainer for one task; give its events."""
    return train_all({folder: description})


@pytest.mark.parametrize("optimizer", ["latent8m", "latent8", "bop", "adam"])
def test_the_update_is_what_the_engine_makes_of_the_task(tmp_path: Path, data_dir: Path, optimizer: str) -> None:
    description, model = describe(data_dir, optimizer=optimizer)
    seed = derive_seed(3, 4, "bird-1")
    spec = ModelSpec.from_json(description["spec_json"])
    codec = get_state_codec("int8")
    engine = Engine(spec, batch_size=10, preset=resolve_preset("bitfleet", optimizer), seed=seed)
    engine.load_state(codec.decode(spec, model, kind="model"))
    with open_dataset(None, data_dir, split="train") as dataset:
        for step in range(20):  # 60 samples: 6 batches an epoch
            batch = permutation(60, seed, step // 6)[step % 6 * 10 :][:10]
            dataset.read(batch, engine.input)
            engine.labels[:] = np.array([1, 2, 0], np.int32)[dataset.labels[batch]]  # a, b, c among c, a, b
            engine.step(1.0)
    expected = codec.encode(spec, engine.state(), kind="update")

    outcome = train(tmp_path / "task", description)[-1]

    assert (tmp_path / "task" / UPDATE_FILE).read_bytes() == expected
    assert outcome["outcome"] == "done"
    assert (outcome["update_digest"], outcome["total_bytes"]) == (payload_digest(expected), len(expected))
    assert (outcome["num_examples"], outcome["steps"], outcome["codec"]) == (60, 20, "int8")


def test_the_seed_and_the_payload_lead_to_the_same_update(tmp_path: Path, data_dir: Path) -> None:
    description, model = describe(data_dir)
    path = tmp_path / "model"
    path.write_bytes(model)

    made = train(tmp_path / "made", description)[-1]
    read = train(tmp_path / "read", {**description, "model_path": str(path), "initial_seed": 0})[-1]

    assert made["update_digest"] == read["update_digest"]


def test_an_update_does_not_depend_on_what_the_trainer_did_before(tmp_path: Path, data_dir: Path) -> None:
    task, _ = describe(data_dir)
    next_round = {**task, "round_number": 5}
    of_another_job, _ = describe(data_dir, optimizer="adam", steps=7)
    told_in_signs = {**task, "up_codec": "sign", "training": {**task["training"], "statistics_batches": 2}}
    cannot_be_made = {**task, "initial_seed": 8}
    tasks = [task, told_in_signs, next_round, of_another_job, cannot_be_made, told_in_signs, task, next_round]
    alone = [train(tmp_path / f"alone-{number}", each)[-1] for number, each in enumerate(tasks)]

    together = train_all({tmp_path / f"task-{number}": each for number, each in enumerate(tasks)})

    outcomes = [event for event in together if "outcome" in event]
    assert [event.get("update_digest") for event in outcomes] == [event.get("update_digest") for event in alone]
    assert [event["outcome"] for event in outcomes] == [*["done"] * 4, "model_missing", *["done"] * 3]


def test_a_peak_is_of_one_task(tmp_path: Path, data_dir: Path) -> None:
    small, _ = describe(data_dir)
    large, _ = describe(data_dir, widths=(4096, 1024))
    tasks = {"first": small, "large": large, "after": small, "last": small}  # "after" begins with the large engine

    events = train_all({tmp_path / name: description for name, description in tasks.items()})

    peaks = dict(zip(tasks, (event["peak_pss_bytes"] for event in events if "outcome" in event), strict=True))
    assert peaks["large"] > peaks["first"] + (8 << 20)
    assert peaks["last"] < peaks["first"] + (4 << 20)


def test_a_device_with_few_samples_uses_all_of_them_in_every_step(tmp_path: Path, data_dir: Path) -> None:
    description, _ = describe(data_dir)
    description["training"]["batch_size"] = 1000

    outcome = train(tmp_path / "task", description)[-1]

    assert (outcome["outcome"], outcome["num_examples"]) == ("done", 60)


def test_progress_is_told_and_the_loss_falls(tmp_path: Path, data_dir: Path) -> None:
    few, _ = describe(data_dir, steps=5)
    many, _ = describe(data_dir, steps=500)

    first = train(tmp_path / "few", few)[-1]
    *progress, last = train(tmp_path / "many", many)

    assert progress[0] == {"step": 1, "total_steps": 500}
    assert last["loss"] < first["loss"]
    assert last["accuracy"] > first["accuracy"]


@pytest.mark.parametrize(
    ("change", "outcome", "words"),
    [
        ({"classes": ["a", "b", "x"]}, "declined", "does not name: c"),
        ({"initial_seed": 8}, "model_missing", "made from the seed"),
        ({"model_path": __file__}, "model_missing", "cached payload"),
        ({"spec_json": "{}"}, "failed", "format"),
        ({"up_codec": "morse"}, "failed", "'morse'"),
        ({"data": {"name": None, "root": "/nowhere"}}, "failed", "the device's data cannot be read"),
        ({"training": NO_STEPS}, "failed", "local_steps"),
        ({"training": {}}, "failed", "unexpected TypeError"),
    ],
)
def test_what_cannot_be_done_is_told(
    tmp_path: Path, data_dir: Path, change: dict[str, Any], outcome: str, words: str
) -> None:
    description, _ = describe(data_dir)

    event = train(tmp_path / "task", {**description, **change})[-1]

    assert event["outcome"] == outcome
    assert words in event["reason"]
    assert not (tmp_path / "task" / UPDATE_FILE).exists()


def test_a_trainer_whose_agent_has_ended_ends_before_it_begins(tmp_path: Path) -> None:
    agent = subprocess.Popen([sys.executable, "-c", "pass"])
    agent.wait(LIMIT_S)

    done = subprocess.run(
        [sys.executable, "-m", "edge_client.trainer", "--parent", str(agent.pid)],
        stdin=subprocess.PIPE,
        timeout=LIMIT_S,
    )

    assert done.returncode == -signal.SIGKILL


def imported(module: str, *packages: str) -> list[str]:
    """What a process has of some packages after it imported a module."""
    code = f"import sys, {module}; print(*sorted(m for m in sys.modules if m.split('.')[0] in {packages}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=LIMIT_S)
    return done.stdout.split()


def test_the_agent_carries_neither_numpy_nor_cryptography_nor_the_engine() -> None:
    assert imported("edge_client.agent", "numpy", "cryptography", "bnncore") == [
        *("bnncore", "bnncore.amounts", "bnncore.durable"),
        *("bnncore.energy", "bnncore.energy.meter", "bnncore.energy.pmic", "bnncore.energy.power_files"),
        *("bnncore.energy.rapl", "bnncore.errors", "bnncore.supervision", "bnncore.way"),
    ]


def test_the_trainer_carries_neither_wire_nor_cryptography() -> None:
    assert imported("edge_client.trainer", "grpc", "google", "asyncio", "ssl", "cryptography") == []

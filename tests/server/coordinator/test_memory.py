"""Whether a job fits into a device's memory, estimated and measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bitfleet.v1 import fleet_pb2 as pb
from bnncore.codec import payload_digest
from bnncore.data import write_idx
from bnncore.federated.memory import TRAINER_BYTES
from bnncore.federated.replica import model_codec
from bnncore.plan import plan_memory
from edge_client.child import LOCAL_STATE_FILE
from edge_client.exchange_child import answer_step
from edge_client.state_dir import StateDir
from server.coordinator.memory import training_memory, why_too_large
from server.coordinator.versions import initial_state
from server.jobs import JobConfig
from server.simulate.exchange import form_of
from tests.edge_client.cohort import DEVICE, Cohort
from tests.patience import LIMIT_S
from tests.server.conftest import make_job
from tests.server.member import random_vector
from tests.server.scripted import CLASSES, samples_of

WIDE = {"zoo": "mlp", "params": {"widths": [2048, 2048, 2048]}}


def told_sum(config: JobConfig) -> dict[str, Any] | None:
    """What a trainer is told of a job whose updates are added up under masks."""
    if config.secure_aggregation is None:
        return None
    weights = "signs" if config.up_codec == "sign" else "fixed"
    privacy = None
    if config.privacy is not None:
        privacy = {"mechanism": "distributed", "noise_multiplier": 1.0, "noisy_members": 3, "clip": 100.0}
    return {"weights": weights, "clip": config.secure_aggregation.clip, "scales": "", "privacy": privacy}


def measured_bytes(config: JobConfig, folder: Path) -> int:
    """Train one step in a trainer of its own, then again with what feedback is left; returns the higher peak."""
    images, labels = samples_of("a")
    write_idx(folder / "data", images.reshape(-1, 4, 4), labels.astype("uint8"), "train", classes=list(CLASSES))
    model = model_codec(config.down_codec).encode(config.spec, initial_state(config), kind="model")
    (folder / "model").write_bytes(model)
    task = {
        "device_id": "a", "round_number": 1, "model_digest": payload_digest(model), "initial_seed": 0,
        "model_path": str(folder / "model"), "step_paths": [], "local_state_path": None,
        "best_path": None, "job_id": "job", "local_tensors": [], "max_memory": 1 << 40, "plan_only": False,
        "input_range": None,
        "summed": told_sum(config),
        "spec_json": config.spec.to_json(), "down_codec": config.down_codec, "up_codec": config.up_codec,
        "classes": list(CLASSES), "data": {"name": None, "root": str(folder / "data")},
        "training": {
            "preset": "bitfleet", "optimizer": "", "batch_size": config.batch_size, "local_steps": 1,
            "step_scale": 1.0, "seed": 0, "statistics_batches": config.statistics_batches,
        },
    }  # fmt: skip
    peaks = []
    for _ in range(2):  # only the first update of a job has none before it
        (folder / "task.json").write_text(json.dumps(task))
        done = subprocess.run(
            [sys.executable, "-m", "edge_client.trainer"],
            input=json.dumps(str(folder)).encode(), stdout=subprocess.PIPE, timeout=LIMIT_S, check=True,
        )  # fmt: skip
        peaks.append(int(json.loads(done.stdout.splitlines()[-1])["peak_pss_bytes"]))
        left_over = folder / LOCAL_STATE_FILE
        task["local_state_path"] = str(left_over) if left_over.exists() else None
    return max(peaks)


@pytest.mark.parametrize(
    ("up", "down"), [("int8", "int8"), ("sign", "sign"), ("float32", "float32"), ("flips", "float16")]
)
def test_the_estimate_is_close_to_what_a_trainer_takes(tmp_path: Path, up: str, down: str) -> None:
    job = make_job(model=WIDE, up_codec=up, down_codec=down, statistics_batches=1)

    # Libraries that other processes have mapped too are this one's in part only.
    assert 0.83 < measured_bytes(job, tmp_path) / estimated_bytes(job) < 1.1


MASKED = pytest.mark.parametrize(
    "settings",
    [
        {"up_codec": "int8"},
        {"recipe": "onebit"},
        {
            "up_codec": "int8",
            "privacy": {
                "mechanism": "distributed",
                "epsilon": 8.0,
                "delta": 1e-5,
                "noise_multiplier": 1.0,
                "clip": 100.0,
            },
        },
    ],
    ids=["int8", "onebit", "private"],
)


@MASKED
def test_under_masks_the_estimate_is_above_what_a_trainer_takes(tmp_path: Path, settings: dict[str, Any]) -> None:
    job = make_job(model=WIDE, statistics_batches=1, secure_aggregation={}, **settings)

    assert 0.8 < measured_bytes(job, tmp_path) / estimated_bytes(job, without="masks") < 1.05


@MASKED
@pytest.mark.parametrize("model", [WIDE, {"zoo": "mlp", "params": {"widths": [64]}}], ids=["wide", "narrow"])
def test_the_estimate_is_above_what_the_process_that_masks_takes(
    tmp_path: Path, settings: dict[str, Any], model: dict[str, Any]
) -> None:
    job = make_job(model=model, secure_aggregation={}, **settings)

    assert 0 < masking_bytes(job, tmp_path) < estimated_bytes(job)


_MASKER = """
import sys
from edge_client.exchange_child import main

main(sys.argv[1:])
status = dict(line.split(":") for line in open("/proc/self/status"))
own = int(status["VmHWM"].split()[0]) - int(status["RssFile"].split()[0])
print(1024 * own, file=sys.stderr)
"""
"""What counts of the files that it maps depends on who else maps them; what is its own does not."""


def masking_bytes(config: JobConfig, folder: Path) -> int:
    """Mask an update as a device does, in a process of its own; returns the peak of what is that process's own."""
    told, choice = told_sum(config), config.secure_aggregation
    assert told is not None
    assert choice is not None
    secure = pb.SecureAggregation(
        attempt=1, min_members=3, threshold=choice.threshold, weights=told["weights"], clip=told["clip"]
    )
    if told["privacy"] is not None:
        privacy = told["privacy"]
        secure.privacy.mechanism, secure.privacy.clip = privacy["mechanism"], privacy["clip"]
        secure.privacy.noise_multiplier = privacy["noise_multiplier"]
    training = pb.TrainingConfig(local_steps=1)
    task = pb.Task(task_id="t", job_id="j", spec_json=config.spec.to_json(), training=training, secure=secure)
    state = StateDir(folder / "device")
    with state.lock():
        state.settle_device_id(DEVICE)
    exchange = state.exchange
    exchange.root.mkdir()
    exchange.begin_attempt(task.SerializeToString())
    exchange.vector_file.write_bytes(random_vector(form_of(task), 1).to_bytes())
    answer_step(state, "keys")
    cohort = Cohort(task, exchange.payload("keys").read_bytes(), exchange.vector_file.read_bytes())
    exchange.keep_order(cohort.shares_order().SerializeToString())
    answer_step(state, "shares")
    exchange.keep_order(cohort.masked_order(exchange.payload("shares").read_bytes()).SerializeToString())
    done = subprocess.run(
        [sys.executable, "-c", _MASKER, str(state.root), "masked"], capture_output=True, timeout=LIMIT_S, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1])["outcome"] == "done", done
    return int(done.stderr.splitlines()[-1])


def estimated_bytes(job: JobConfig, without: str = "") -> int:
    parts = training_memory(job, num_examples=40, threads=1)
    return sum(num_bytes for name, num_bytes in parts.items() if name != without)


def test_a_batch_is_no_larger_than_the_device_has_samples() -> None:
    job = make_job(batch_size=1000)

    def plan(batch_size: int) -> int:
        return plan_memory(job.spec, batch_size=batch_size).peak_bytes

    for num_examples, batch_size in ((7, 7), (5000, 1000)):
        assert training_memory(job, num_examples=num_examples, threads=1) == {
            "engine": plan(batch_size),
            "trainer": TRAINER_BYTES,
            "payloads": round(2.1 * 304),
        }


def test_what_a_device_of_a_one_bit_job_holds_is_named() -> None:
    job = make_job(model=WIDE, recipe="onebit")

    parts = training_memory(job, num_examples=40, threads=1)

    weights = job.spec.num_binary_weights
    assert (parts["replica"], parts["feedback"], parts["update"]) == (weights, 2 * weights, round(0.4 * weights))


def test_both_figures_are_named_when_it_does_not_fit() -> None:
    job = make_job(model=WIDE)
    parts = training_memory(job, num_examples=40, threads=1)
    needed = sum(parts.values())

    assert why_too_large(job, needed, 40, 1) is None
    assert why_too_large(job, 0, 40, 1) is None
    reason = why_too_large(job, needed - 1, 40, 1)
    engine, trainer, payloads = (f"{num_bytes / 2**20:.1f}" for num_bytes in parts.values())
    assert reason == (
        f"training takes {needed / 2**20:.1f} MiB (engine {engine}, trainer {trainer}, payloads {payloads}), "
        f"its memory budget is {(needed - 1) / 2**20:.1f} MiB"
    )

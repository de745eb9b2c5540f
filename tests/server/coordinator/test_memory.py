"""Whether a job fits into a device's memory, estimated and measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bnncore.codec import payload_digest
from bnncore.data import write_idx
from bnncore.federated.replica import model_codec
from bnncore.plan import plan_memory
from server.coordinator.memory import TRAINER_BYTES, training_bytes, why_too_large
from server.coordinator.versions import initial_state
from server.jobs import JobConfig
from tests.server.conftest import make_job
from tests.server.scripted import CLASSES, samples_of

WIDE = {"zoo": "mlp", "params": {"widths": [1024, 1024, 1024]}}


def measured_bytes(config: JobConfig, folder: Path) -> int:
    """Train one step in a trainer of its own; returns its peak, as devices tell it."""
    images, labels = samples_of("a")
    write_idx(folder / "data", images.reshape(-1, 4, 4), labels.astype("uint8"), "train", classes=list(CLASSES))
    model = model_codec(config.down_codec).encode(config.spec, initial_state(config), kind="model")
    (folder / "model").write_bytes(model)
    task = {
        "device_id": "a", "round_number": 1, "model_digest": payload_digest(model), "initial_seed": 0,
        "model_path": str(folder / "model"), "step_paths": [], "feedback_path": None,
        "spec_json": config.spec.to_json(), "down_codec": config.down_codec, "up_codec": config.up_codec,
        "classes": list(CLASSES), "data": {"name": None, "root": str(folder / "data")}, "threads": 1,
        "training": {
            "preset": "bitfleet", "optimizer": "", "batch_size": config.batch_size, "local_steps": 1,
            "step_scale": 1.0, "seed": 0, "statistics_batches": config.statistics_batches,
        },
    }  # fmt: skip
    (folder / "task.json").write_text(json.dumps(task))
    done = subprocess.run(
        [sys.executable, "-m", "edge_client.trainer", str(folder)], stdout=subprocess.PIPE, timeout=60, check=True
    )
    return int(json.loads(done.stdout.splitlines()[-1])["peak_pss_bytes"])


@pytest.mark.parametrize(
    ("up", "down"), [("int8", "int8"), ("sign", "sign"), ("float32", "float32"), ("flips", "float16")]
)
def test_the_estimate_is_close_to_what_a_trainer_takes(tmp_path: Path, up: str, down: str) -> None:
    job = make_job(model=WIDE, up_codec=up, down_codec=down, statistics_batches=1)

    measured = measured_bytes(job, tmp_path)

    assert training_bytes(job, num_examples=40, threads=1) == pytest.approx(measured, rel=0.25)


def test_a_batch_is_no_larger_than_the_device_has_samples() -> None:
    job = make_job(batch_size=1000)

    def plan(batch_size: int) -> int:
        return plan_memory(job.spec, batch_size=batch_size).peak_bytes

    assert training_bytes(job, num_examples=7, threads=1) - TRAINER_BYTES == plan(7) + round(2.1 * 304)
    assert training_bytes(job, num_examples=5000, threads=1) - TRAINER_BYTES == plan(1000) + round(2.1 * 304)


def test_both_figures_are_named_when_it_does_not_fit() -> None:
    job = make_job(model=WIDE)
    needed = training_bytes(job, num_examples=40, threads=1)

    assert why_too_large(job, needed, 40, 1) is None
    assert why_too_large(job, 0, 40, 1) is None
    reason = why_too_large(job, needed - 1, 40, 1)
    assert reason == f"training takes {needed / 2**20:.1f} MiB, its memory budget is {(needed - 1) / 2**20:.1f} MiB"

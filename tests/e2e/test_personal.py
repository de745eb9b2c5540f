"""Personal tensors and local evaluation with real processes: coordinator, agents, trainers, one of them killed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnncore.checkpoint import load_checkpoint
from bnncore.engine import Engine
from tests.e2e.conftest import DEVICES
from tests.e2e.processes import Fleet
from tests.patience import LIMIT_S, wait_for


@pytest.fixture
def fleets(tmp_path: Path, job: dict[str, Any], shards: dict[str, Path]) -> Iterator[list[Fleet]]:
    personal = {
        **job,
        "name": "personal",
        "recipe": "onebit",
        "rounds": 2,
        "local_steps": 200,
        "local_tensors": ["*.beta", "dense3.weight"],
        "local_validation": 0.2,
        "target": "local",
    }
    found = []
    for name in ("killed", "undisturbed"):
        (tmp_path / name).mkdir()
        found.append(Fleet(tmp_path / name, [personal], shards))
    yield found
    for fleet in found:
        fleet.close()


def test_devices_keep_what_is_theirs_through_a_kill(fleets: list[Fleet], tmp_path: Path) -> None:
    def in_round_two() -> bool:
        return fleets[0].devices["device-1"].log.read_text().count("task begins") > 1

    for fleet in fleets:
        fleet.start()
        if fleet is fleets[0]:
            wait_for("round 2", in_round_two)
            fleet.devices["device-1"].kill()
            fleet.start_device("device-1")
        fleet.wait_until_completed()
        assert fleet.stop() == [0] * (len(DEVICES) + 1)
    killed, undisturbed = fleets

    for fleet in fleets:
        fleet.start_coordinator()
    assert killed.digests() == undisturbed.digests()
    first, second, closing = killed.rounds()
    assert first["local_examples"] == second["local_examples"] > 0
    assert (closing["local_accuracy"], killed.job()["local_accuracy"]) == (None, second["local_accuracy"])
    assert second["local_accuracy"] > 60
    for name in DEVICES:
        states = [sorted((fleet.state_folder(name) / "local-state").iterdir()) for fleet in fleets]
        assert [path.read_bytes() for path in states[0]] == [path.read_bytes() for path in states[1]] != []

    # The coordinator's own values of what stays on devices are still those of the seed.
    path = tmp_path / "model.safetensors"
    command = ["models", "export", killed.job()["id"], "--output", str(path), "--server", killed.url]
    subprocess.run([sys.executable, "-m", "server", *command], check=True, timeout=LIMIT_S)
    exported = load_checkpoint(path)
    engine = Engine(exported.spec, batch_size=1)
    engine.initialise(0)
    start = engine.state()
    assert np.array_equal(exported.state["norm2.beta"], start["norm2.beta"])
    assert np.array_equal(exported.state["dense3.weight"], start["dense3.weight"])
    assert not np.array_equal(exported.state["dense1.weight"], start["dense1.weight"])

    # A device's best model is a checkpoint that any tool of ours reads.
    (best,) = ask("edge_client", "status", "--state", str(killed.state_folder("device-2")))["best_models"]
    assert ask("bnncore.cli", "evaluate", best["path"], "--dataset", "digits")["accuracy"] > 20


def ask(module: str, *arguments: str) -> Any:
    command = [sys.executable, "-m", module, *arguments, "--json", "-"]
    return json.loads(subprocess.run(command, capture_output=True, check=True, timeout=LIMIT_S).stdout)

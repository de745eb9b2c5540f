"""Every reader loads its input or refuses it with an error of bitfleet: a short run of what `make fuzz` does."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_targets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

FUZZ = Path(__file__).parent / "fuzz_readers.py"


@pytest.mark.parametrize("target", fuzz_targets.TARGETS)
def test_valid_input_loads(target: str) -> None:
    assert all(fuzz_targets.run_target(target, data) for data in fuzz_targets.seeds()[target])


@pytest.mark.parametrize("target", fuzz_targets.TARGETS)
@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=300)
def test_changed_input_loads_or_is_refused(target: str, seed: int) -> None:
    rng = random.Random(seed)
    fuzz_targets.run_target(target, fuzz_targets.mutate(rng.choice(fuzz_targets.seeds()[target]), rng))


@pytest.mark.parametrize("target", fuzz_targets.TARGETS)
@given(data=st.binary(max_size=200))
def test_noise_is_refused(target: str, data: bytes) -> None:
    fuzz_targets.run_target(target, data)


def drop(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda metadata: metadata.pop(key)


def put(value: object, *path: str) -> Callable[[dict[str, Any]], object]:
    def change(metadata: dict[str, Any]) -> None:
        for key in path[:-1]:
            metadata = metadata[key]
        metadata[path[-1]] = value

    return change


# What the fuzzer found, its digest made right: each ended in another exception, or loaded.
@pytest.mark.parametrize(
    ("target", "change"),
    [
        ("checkpoint_metadata", drop("weights_digest")),
        ("checkpoint_metadata", drop("extra")),
        ("checkpoint_metadata", put([1], "extra")),
        ("training_metadata", put("x", "settings")),
        ("training_metadata", put([], "progress")),
        ("training_metadata", put("x", "progress", "steps")),
        ("training_metadata", put({"a": 1}, "progress", "schedule")),
        ("training_metadata", put([1], "progress", "epochs")),
        ("training_metadata", put("x", "counters", "seed")),
        ("training_metadata", put(-1, "counters", "steps_done")),
        ("training_metadata", put(1 << 31, "counters", "statistics_steps")),
        ("training_metadata", put(float("inf"), "counters", "saturated")),
        ("training_metadata", put(float("nan"), "counters", "beta1_power")),
        ("training_metadata", put(10**400, "counters", "beta2_power")),
    ],
)
def test_what_the_fuzzer_found_is_refused(target: str, change: Callable[[dict[str, Any]], object]) -> None:
    metadata = json.loads(fuzz_targets.seeds()[target][0])
    change(metadata)

    assert not fuzz_targets.run_target(target, json.dumps(metadata).encode())


def test_numbers_and_names_that_python_cannot_read_are_refused() -> None:
    digits = fuzz_targets.seeds()["training_metadata"][0].replace(b'"version": 1', b'"version": ' + b"9" * 5000)
    name = fuzz_targets.seeds()["training"][0].replace(b'"norm1.beta"', b'"\\ud80bbb"')

    assert b"9" * 5000 in digits
    assert b"\\ud80bbb" in name
    assert not fuzz_targets.run_target("training_metadata", digits)
    assert not fuzz_targets.run_target("training", name)


def test_the_fuzzer_reports_a_finding_and_keeps_its_input(tmp_path: Path) -> None:
    command = [sys.executable, str(FUZZ), "--seconds", "2", "--folder", str(tmp_path), "--without-coverage"]

    clean = subprocess.run([*command, "--only", "spec"], capture_output=True, text=True, timeout=60, check=False)
    found = subprocess.run([*command, "--only", "broken"], capture_output=True, text=True, timeout=60, check=False)

    assert clean.returncode == 0, clean.stderr
    assert "spec: " in clean.stdout
    assert found.returncode == 1
    assert "ZeroDivisionError" in found.stderr
    assert len(list((tmp_path / "broken").glob("crash-*"))) == 1

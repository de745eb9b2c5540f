"""Every reader of foreign bytes loads its input or refuses it: a short run of what ``make fuzz`` does."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.targets import all_targets, seeds_of
from tests.patience import LIMIT_S

REPOSITORY = Path(__file__).resolve().parents[2]
CHANGED, NOISE = 250, 50
"""Inputs a target, always the same ones."""


@pytest.mark.parametrize("name", all_targets())
def test_a_reader_loads_its_input_or_refuses_it(name: str) -> None:
    target, rng = all_targets()[name], random.Random(name)

    assert all(target.loads(data) for data in seeds_of(name))
    for _ in range(CHANGED):
        target.loads(target.mutate(rng.choice(seeds_of(name)), rng))
    for _ in range(NOISE):
        target.loads(rng.randbytes(rng.randrange(200)))


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
        ("checkpoint's metadata", drop("weights_digest")),
        ("checkpoint's metadata", drop("extra")),
        ("checkpoint's metadata", put([1], "extra")),
        ("saved run's metadata", put("x", "settings")),
        ("saved run's metadata", put([], "progress")),
        ("saved run's metadata", put("x", "progress", "steps")),
        ("saved run's metadata", put({"a": 1}, "progress", "schedule")),
        ("saved run's metadata", put([1], "progress", "epochs")),
        ("saved run's metadata", put("x", "counters", "seed")),
        ("saved run's metadata", put(-1, "counters", "steps_done")),
        ("saved run's metadata", put(1 << 31, "counters", "statistics_steps")),
        ("saved run's metadata", put(float("inf"), "counters", "saturated")),
        ("saved run's metadata", put(float("nan"), "counters", "beta1_power")),
        ("saved run's metadata", put(10**400, "counters", "beta2_power")),
    ],
)
def test_what_the_fuzzer_found_is_refused(target: str, change: Callable[[dict[str, Any]], object]) -> None:
    metadata = json.loads(seeds_of(target)[0])
    change(metadata)

    assert not all_targets()[target].loads(json.dumps(metadata).encode())


def test_numbers_and_names_that_python_cannot_read_are_refused() -> None:
    digits = seeds_of("saved run's metadata")[0].replace(b'"version": 1', b'"version": ' + b"9" * 5000)
    name = seeds_of("saved run")[0].replace(b'"norm1.beta"', b'"\\ud80bbb"')

    assert b"9" * 5000 in digits
    assert b"\\ud80bbb" in name
    assert not all_targets()["saved run's metadata"].loads(digits)
    assert not all_targets()["saved run"].loads(name)


@pytest.mark.parametrize(
    ("part", "other"),
    [("020100", "020119"), ("2a8648ce3d0201", "2a8648ce3d0277")],
    ids=["another version", "a kind of key that nobody knows"],
)
def test_a_certificate_request_that_cannot_be_read_is_refused(part: str, other: str) -> None:
    right = seeds_of("certificate request")[0]
    wrong = right.replace(bytes.fromhex(part), bytes.fromhex(other), 1)

    assert wrong != right
    assert not all_targets()["certificate request"].loads(wrong)


def test_a_token_may_be_any_text() -> None:
    target, (body,) = all_targets()["REST enrolment"], seeds_of("REST enrolment")

    assert target.loads(body.replace(b"bft_1_x", b"\\ud800"))


def test_the_fuzzer_counts_its_inputs_reports_a_finding_and_keeps_its_input(tmp_path: Path) -> None:
    def fuzz(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tests.fuzz", "--inputs", "500", "--folder", str(tmp_path), "--only", name]
        command.append("--without-coverage")
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=LIMIT_S, check=False)

    clean, found = fuzz("spec"), fuzz("broken")

    assert clean.returncode == 0, clean.stderr
    assert json.loads(clean.stdout)["inputs"] == 500
    assert found.returncode == 1
    assert "ZeroDivisionError" in found.stderr
    assert len(list((tmp_path / "broken").glob("crash-*"))) == 1

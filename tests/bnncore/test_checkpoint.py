"""A checkpoint gives back what was saved, or says that it cannot."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from bnncore.checkpoint import load_checkpoint, save_checkpoint
from bnncore.errors import CheckpointError, PayloadError
from bnncore.state import weights_digest, without_statistics
from bnncore.zoo import mlp
from tests.bnncore.random_states import assert_same_state, random_state

SPEC = mlp((2, 3), (4,), 2)


@pytest.mark.parametrize("dtype", [np.int8, np.float32])
@pytest.mark.parametrize("statistics", [True, False])
def test_loading_gives_back_what_was_saved(tmp_path: Path, dtype: Any, statistics: bool) -> None:
    state = random_state(SPEC, 4, statistics=statistics, dtype=dtype)
    extra = {"accuracy": 97.25, "epochs": [1, 2], "by_step": {10: "a", 9: "b"}}

    digest = save_checkpoint(tmp_path / "model.safetensors", SPEC, state, extra=extra)
    loaded = load_checkpoint(tmp_path / "model.safetensors")

    assert loaded.spec == SPEC
    assert_same_state(loaded.state, state)
    assert loaded.extra == {"accuracy": 97.25, "epochs": [1, 2], "by_step": {"10": "a", "9": "b"}}
    assert loaded.weights_digest == digest == weights_digest(SPEC, state)


def test_the_file_opens_in_the_safetensors_package(tmp_path: Path) -> None:
    state = random_state(SPEC, 4)
    save_checkpoint(tmp_path / "model.safetensors", SPEC, state)

    with safetensors.safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        assert set(file.keys()) == set(state)
        assert list(file.metadata()) == ["bitfleet"]


def test_a_damaged_file_is_refused_or_unchanged_in_meaning(tmp_path: Path) -> None:
    state = random_state(SPEC, 4)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, SPEC, state, extra={"epoch": 3})
    data = path.read_bytes()
    accepted = 0

    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x21]) + data[position + 1 :])
        try:
            loaded = load_checkpoint(path)
        except CheckpointError:
            continue
        accepted += 1
        assert_same_state(loaded.state, state)
        assert loaded.extra == {"epoch": 3}

    assert accepted == 0


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, SPEC, random_state(SPEC, 4))
    data = path.read_bytes()

    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"model\.safetensors is no valid checkpoint"):
            load_checkpoint(path)


def test_files_of_other_programs_are_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    safetensors.numpy.save_file({"w": np.zeros(3, np.float32)}, foreign)
    (tmp_path / "text").write_text("hello, this is a text file of more than eight bytes")

    for path in (foreign, tmp_path / "text", tmp_path / "absent", tmp_path):
        with pytest.raises(CheckpointError, match=path.name):
            load_checkpoint(path)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    old = save_checkpoint(path, SPEC, random_state(SPEC, 4))
    bad = random_state(SPEC, 5)
    bad["norm1.beta"][0] = np.nan

    with pytest.raises(PayloadError):
        save_checkpoint(path, SPEC, bad)
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(tmp_path / "no" / "folder", SPEC, without_statistics(random_state(SPEC, 4)))

    assert load_checkpoint(path).weights_digest == old
    assert os.listdir(tmp_path) == ["model.safetensors"]

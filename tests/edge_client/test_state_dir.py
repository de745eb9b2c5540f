import hashlib
import os
from pathlib import Path

import pytest

from edge_client.child import UPDATE_FILE
from edge_client.errors import StateFolderError
from edge_client.pending_update import PendingUpdate
from edge_client.state_dir import StateDir

UPDATE = PendingUpdate(
    task_id="job-1",
    job_id="job",
    round_number=1,
    model_digest="m",
    update_digest=hashlib.sha256(b"update").hexdigest(),
    total_bytes=6,
    num_examples=60,
    codec="int8",
    loss=0.1,
    accuracy=0.5,
    steps=20,
    seconds=1.5,
    training_seconds=1.25,
    peak_pss_bytes=1,
    downloaded_bytes=2,
    written_bytes=8192,
    validation_examples=12,
    validation_correct=9,
    validation_loss=0.5,
    joules=3.5,
    joules_source="rapl",
)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    state = StateDir(tmp_path / "state")
    with state.lock():
        pass
    return state


def keep(state: StateDir) -> None:
    (state.new_task() / UPDATE_FILE).write_bytes(b"update")
    state.keep_pending(UPDATE)


def test_a_pending_update_is_read_back_as_it_was(state: StateDir) -> None:
    keep(state)

    assert state.pending() == UPDATE
    assert state.pending_file.read_bytes() == b"update"
    assert not state.task.exists()


def test_a_dropped_update_is_gone(state: StateDir) -> None:
    keep(state)

    state.drop_pending()
    state.drop_pending()

    assert state.pending() is None
    assert [path.name for path in sorted(state.root.iterdir())] == ["lock", "models"]


@pytest.mark.parametrize(
    "damage", ["no header", "cut header", "other header", "cut update", "other update", "no update"]
)
def test_a_damaged_pending_update_is_told_and_can_be_dropped(state: StateDir, damage: str) -> None:
    keep(state)
    header = state.pending_file.with_name("header.json")
    match damage:
        case "no header":
            header.unlink()
        case "cut header":
            header.write_bytes(header.read_bytes()[:20])
        case "other header":
            header.write_bytes(header.read_bytes().replace(b'"round_number": ', b'"round_number": 1'))
        case "other update":
            state.pending_file.write_bytes(b"updaTe")
        case "cut update":
            state.pending_file.write_bytes(b"up")
        case "no update":
            state.pending_file.unlink()

    with pytest.raises(StateFolderError):
        state.pending()
    state.drop_pending()

    assert state.pending() is None


def test_a_new_task_finds_an_empty_folder(state: StateDir) -> None:
    (state.new_task() / "left over").touch()

    assert list(state.new_task().iterdir()) == []


def test_the_lock_is_held_once_and_its_holder_is_told(state: StateDir) -> None:
    with state.lock():
        assert state.holder() == os.getpid()
        with pytest.raises(StateFolderError, match=f"PID {os.getpid()}"), StateDir(state.root).lock():
            pass
    assert state.holder() is None


def test_a_state_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StateFolderError, match="--state"), StateDir(tmp_path / "file").lock():
        pass


def test_a_device_keeps_its_first_name(state: StateDir) -> None:
    name = state.settle_device_id(None)

    assert state.settle_device_id(None) == name
    assert state.settle_device_id(name) == name
    with pytest.raises(StateFolderError, match="belongs to device"):
        state.settle_device_id("other")


def test_made_names_differ(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()

    names = {StateDir(tmp_path / name).settle_device_id(None) for name in ("a", "b")}

    assert len(names) == 2

import json
from pathlib import Path

import pytest

from edge_client.child import UPDATE_FILE
from edge_client.cli import main
from edge_client.state_dir import StateDir
from tests.edge_client.test_state_dir import UPDATE


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    state = StateDir(tmp_path / "state")
    with state.lock():
        state.settle_device_id("bird-1")
    state.outbox.sending(job_id="job", round_number=1, task_id="job-1", num_bytes=1000, digest="d" * 64)
    state.outbox.answered("ACCEPTED")
    state.outbox.sending(job_id="job", round_number=2, task_id="job-2", num_bytes=1000, digest="e" * 64)
    return state


def test_status_tells_what_the_device_is_and_did(state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
    (state.new_task() / UPDATE_FILE).write_bytes(b"update")
    state.keep_pending(UPDATE)
    state.note_last_task({"task_id": "job-1", "at": "2026-01-02", "outcome": "ACCEPTED", "reason": ""})

    assert main(["status", "--state", str(state.root)]) == 0
    text = capsys.readouterr().out
    assert main(["status", "--json", "--state", str(state.root)]) == 0
    facts = json.loads(capsys.readouterr().out)

    for words in ("bird-1", "not running", "job-1 ACCEPTED at 2026-01-02", "round 1, 6 bytes", "2 updates, 2000 bytes"):
        assert words in text
    assert (facts["device_id"], facts["agent_pid"], facts["bytes_sent"]) == ("bird-1", None, 2000)
    assert facts["pending"]["update_digest"] == "u"


def test_outbox_lists_what_left(state: StateDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["outbox", "--state", str(state.root)]) == 0
    text = capsys.readouterr().out
    assert main(["outbox", "--json", str(tmp_path / "out.json"), "--state", str(state.root)]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())

    assert "2000 bytes in 2 updates" in text
    assert [(row["round"], row["status"]) for row in rows] == [(1, "ACCEPTED"), (2, "UNANSWERED")]


@pytest.mark.parametrize("command", ["status", "outbox"])
def test_a_device_that_never_ran_has_nothing_to_tell(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--state", str(tmp_path / "none")]) == 0
    assert capsys.readouterr().out
    assert not (tmp_path / "none").exists()


def test_a_missing_server_is_told_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--data", "/d"]) == 3
    assert capsys.readouterr().err.startswith("bitfleet: error: the coordinator must be named")


def test_no_command_is_a_mistake_of_use() -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2

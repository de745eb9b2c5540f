import hashlib
import json
from pathlib import Path

import pytest

from edge_client.budgets import Budgets
from edge_client.child import UPDATE_FILE
from edge_client.cli import main
from edge_client.outbox import Dispatch
from edge_client.policy import Policy
from edge_client.settings import ClientSettings
from edge_client.state_dir import StateDir
from tests.edge_client.test_state_dir import UPDATE


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    state = StateDir(tmp_path / "state")
    with state.lock():
        state.settle_device_id("bird-1")
    state.outbox.sending(Dispatch("2026-01-02", "update", "job", 1, "job-1", 1000, "d" * 64))
    state.outbox.answered("ACCEPTED")
    state.outbox.sending(Dispatch("2026-01-02", "update", "job", 2, "job-2", 1000, "e" * 64))
    return state


def test_status_tells_what_the_device_is_and_did(state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
    (state.new_task() / UPDATE_FILE).write_bytes(b"update")
    state.keep_pending(UPDATE)
    energy = {"joules": 5.0, "joules_source": "rapl", "steps": 20}
    state.note_last_task({"task_id": "job-1", "at": "2026-01-02", "outcome": "ACCEPTED", "reason": "", **energy})
    settings = ClientSettings(server="h:1", state=state.root, cpu_share=80, max_temperature=70.5)
    state.note_budgets(Budgets.of(settings, Policy(cpu_share=50, max_memory=64 << 20, max_up=1 << 20)).to_dict())

    assert main(["status", "--state", str(state.root)]) == 0
    text = capsys.readouterr().out
    assert main(["status", "--json", "--state", str(state.root)]) == 0
    facts = json.loads(capsys.readouterr().out)

    for words in ("bird-1", "not running", "job-1 ACCEPTED at 2026-01-02", "round 1, 6 bytes", "2 updates, 2000 bytes"):
        assert words in text
    for words in (
        "5 J for the last task, 0.25 J a step (measured: rapl)",
        "64.0 MiB and 1 thread(s) of a trainer, 50 % of",
    ):
        assert words in text
    assert "up to 70.5 °C, on mains only, not over a metered network, 1.00 MiB up a day" in text
    assert (facts["device_id"], facts["agent_pid"], facts["bytes_sent"]) == ("bird-1", None, 2000)
    assert facts["pending"]["update_digest"] == hashlib.sha256(b"update").hexdigest()


def test_outbox_lists_what_left(state: StateDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["outbox", "--state", str(state.root)]) == 0
    text = capsys.readouterr().out
    assert main(["outbox", "--json", str(tmp_path / "out.json"), "--state", str(state.root)]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())

    assert "2000 bytes in 2 payloads" in text
    assert [(row["round"], row["kind"], row["status"]) for row in rows["payloads"]] == [
        (1, "update", "ACCEPTED"),
        (2, "update", "UNANSWERED"),
    ]


def test_outbox_says_whether_it_is_as_it_was_written(state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
    verify = ["outbox", "--verify", "--json", "--state", str(state.root)]

    assert main(verify) == 0
    facts = json.loads(capsys.readouterr().out)
    assert main([*verify[:2], *verify[3:], "--noted", facts["head"]]) == 0
    assert facts["head"] in capsys.readouterr().out
    assert main([*verify, "--noted", "0" * 64]) == 1
    assert "was noted" in json.loads(capsys.readouterr().out)["problems"][0]

    ledger = state.root / "outbox.jsonl"
    ledger.write_bytes(ledger.read_bytes().replace(b"ACCEPTED", b"REJECTED"))
    assert main(verify) == 1
    told = json.loads(capsys.readouterr().out)
    assert (facts["intact"], facts["lines"], facts["problems"]) == (True, 3, [])
    assert (told["intact"], told["lines"]) == (False, 3)
    assert told["problems"] == ["what stands before line 3 was changed after that was written"]


def test_a_payload_that_is_another_than_the_ledger_says_is_noticed(
    state: StateDir, capsys: pytest.CaptureFixture[str]
) -> None:
    (state.new_task() / UPDATE_FILE).write_bytes(b"update")
    state.keep_pending(UPDATE)
    state.outbox.sending(Dispatch("2026-01-02", "update", "job", 1, UPDATE.task_id, 6, "f" * 64))

    assert main(["outbox", "--verify", "--state", str(state.root)]) == 1
    assert f"the ledger says {'f' * 64}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["status", "outbox"])
def test_a_device_that_never_ran_has_nothing_to_tell(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--state", str(tmp_path / "none")]) == 0
    assert capsys.readouterr().out
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("server", [(), ("--server", "127.0.0.1:7070")])
def test_a_device_that_is_not_enrolled_is_told_how(server: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--data", "/d", *server]) == 3

    error = capsys.readouterr().err
    assert error.startswith("bitfleet: error: this device is not enrolled")
    assert "bitfleet-client enroll" in error


def test_no_other_machine_is_spoken_to_in_the_clear(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--data", "/d", "--insecure", "--server", "192.168.1.4:7070"]) == 3
    assert "192.168.1.4:7070 may be another" in capsys.readouterr().err


def test_no_command_is_a_mistake_of_use() -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2

import json
from typing import Any

import pytest

from edge_client.identity import Identity
from edge_client.outbox import Dispatch, Outbox
from edge_client.records import as_record, read_json

WHOLE: dict[str, Any] = {
    "device_id": "bird-1",
    "server": "h:1",
    "enrolled_at": "https://h:2",
    "not_before": 1.5,
    "not_after": 2,
}


def test_a_record_is_read_back() -> None:
    assert as_record(Identity, WHOLE) == Identity("bird-1", "h:1", "https://h:2", 1.5, 2)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "must be an object with the keys device_id, server"),
        ({**WHOLE, "more": 1}, "must be an object with the keys"),
        ({key: value for key, value in WHOLE.items() if key != "server"}, "lacks server"),
        ({**WHOLE, "not_after": "2"}, "not_after must be of type float, got '2'"),
        ({**WHOLE, "not_after": True}, "not_after must be of type float"),
        ({**WHOLE, "server": None}, "server must be of type str"),
    ],
)
def test_what_is_no_record_is_an_error(value: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        as_record(Identity, value)


def test_json_that_is_nested_too_deeply_is_an_error() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json("[" * 100_000)


def test_damaged_lines_of_the_ledger_are_passed_over(tmp_path: Any) -> None:
    ledger = Outbox(tmp_path / "outbox.jsonl")
    ledger.sending(Dispatch("2026-01-01", "update", "j", 1, "t", 9, "d"))
    ledger.answered("ACCEPTED")
    with open(tmp_path / "outbox.jsonl", "a") as file:
        for line in (
            {"event": "sending", "bytes": 1},
            {"event": "sending", "more": 1},
            {"event": "answered"},
            {"event": "talked", "at": "", "bytes": 1, "messages": {"hello": "1"}},
            {"event": "talked", "at": "", "bytes": 1, "messages": []},
            {"event": "reporting"},
            {"event": 3},
            "[" * 9999,
        ):
            file.write(f"{line if isinstance(line, str) else json.dumps(line)}\n")

    (dispatch,) = ledger.entries()
    assert isinstance(dispatch, Dispatch)
    assert dispatch.status == "ACCEPTED"

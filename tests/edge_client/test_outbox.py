from pathlib import Path

import pytest

from edge_client.errors import StateFolderError
from edge_client.outbox import UNANSWERED, Dispatch, Outbox, Privacy, Report, Talk

AT = "2026-01-02T03:04:05+00:00"


def ledger(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "outbox.jsonl", now=lambda: AT)


def dispatch(number: int, status: str = UNANSWERED, reason: str = "", kind: str = "update") -> Dispatch:
    return Dispatch(AT, kind, "job", number, f"job-{number}", 10 * number, "d", status=status, reason=reason)


def send(outbox: Outbox, number: int) -> None:
    outbox.sending(dispatch(number))


def test_every_sending_is_listed_with_its_answer(tmp_path: Path) -> None:
    outbox = ledger(tmp_path)

    send(outbox, 1)
    outbox.answered("ACCEPTED")
    send(outbox, 2)
    outbox.answered("LATE", "the round has closed")

    assert list(outbox.dispatches()) == [dispatch(1, "ACCEPTED"), dispatch(2, "LATE", "the round has closed")]


def test_a_sending_without_an_answer_stays_in_the_ledger(tmp_path: Path) -> None:
    outbox = ledger(tmp_path)

    send(outbox, 1)
    send(outbox, 1)
    outbox.answered("DUPLICATE")
    send(outbox, 2)

    assert [row.status for row in outbox.dispatches()] == [UNANSWERED, "DUPLICATE", UNANSWERED]


def test_a_line_that_a_power_cut_left_unfinished_harms_no_other(tmp_path: Path) -> None:
    outbox = ledger(tmp_path)
    send(outbox, 1)
    outbox.answered("ACCEPTED")
    send(outbox, 2)
    path = tmp_path / "outbox.jsonl"
    whole = path.read_bytes()

    for length in (*range(0, len(whole), 9), len(whole)):
        path.write_bytes(whole[:length])
        before = [row.round_number for row in outbox.dispatches()]
        send(outbox, 3)
        outbox.answered("ACCEPTED")

        assert [row.round_number for row in outbox.dispatches()] == [*before, 3]


def test_the_ledger_only_grows(tmp_path: Path) -> None:
    outbox = ledger(tmp_path)
    send(outbox, 1)
    before = (tmp_path / "outbox.jsonl").read_bytes()

    send(outbox, 2)

    assert (tmp_path / "outbox.jsonl").read_bytes().startswith(before)


def test_no_ledger_is_an_empty_one(tmp_path: Path) -> None:
    assert list(ledger(tmp_path).dispatches()) == []


def test_what_protects_a_payload_and_what_else_left_is_listed(tmp_path: Path) -> None:
    outbox = ledger(tmp_path)
    masked = Dispatch(
        AT, "masked", "job", 1, "job-1", 10, "d", attempt=2, privacy=Privacy("distributed", 1.5, 0.5, 1e-5)
    )
    report = Report(AT, "job-2", "DECLINED", "no", 30, "e")
    talk = Talk()

    outbox.talked(talk)  # nothing to tell is no line
    talk.add("hello", 100)
    talk.add("heartbeat", 20)
    talk.add("heartbeat", 20)
    outbox.sending(masked)
    outbox.reporting(report)
    outbox.talked(talk)

    told = list(outbox.entries())
    assert told[:1] == [report]
    assert isinstance(told[1], Talk)
    assert (told[1].messages, told[1].bytes) == ({"hello": 1, "heartbeat": 2}, 140)
    assert told[2:] == [masked]
    assert talk == Talk()
    assert outbox.verify().problems == []


def test_a_ledger_without_a_chain_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "outbox.jsonl"
    path.write_text('{"event": "sending", "at": "2026-01-01", "job_id": "j"}\n')

    with pytest.raises(StateFolderError, match="did not bind its lines together; keep it under another name"):
        ledger(tmp_path).begin()
    path.unlink()
    assert ledger(tmp_path).begin().problems == []

from pathlib import Path

from edge_client.outbox import UNANSWERED, Dispatch, Outbox


def ledger(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "outbox.jsonl", now=lambda: "2026-01-02T03:04:05+00:00")


def send(outbox: Outbox, number: int) -> None:
    outbox.sending(job_id="job", round_number=number, task_id=f"job-{number}", num_bytes=10 * number, digest="d")


def dispatch(number: int, status: str, reason: str = "") -> Dispatch:
    return Dispatch("2026-01-02T03:04:05+00:00", "job", number, f"job-{number}", 10 * number, "d", status, reason)


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

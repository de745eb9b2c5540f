"""The tables of ``docs/reliability.md``: which fault, how often, what was lost, how long until the fleet went on."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults.kills import Account


@dataclass(frozen=True)
class Row:
    """One kind of fault."""

    fault: str
    times: int
    lost: int
    """Rounds and updates, of all in the run."""
    median_s: float
    """From the fault to the next committed round."""
    worst_s: float


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    part: str
    """``kills``, ``around`` or ``links``."""
    date: str
    command: str
    seconds: float
    steps: int
    """Different named steps at which a process was killed."""
    rounds: int
    """Committed, in all jobs that were disturbed."""
    updates: int
    """Acknowledged in them."""
    round_s: float
    """Median seconds of a round that nobody disturbs, of the slower kind of job."""
    losses: dict[str, list[str]]
    rows: Sequence[Row]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def rows_of(account: Account) -> list[Row]:
    """Make a row of each kind of fault. What was lost is found at a job's end and belongs to all its rows."""
    lost = account.losses.count
    return [
        Row(fault, times, lost, statistics.median(seconds), max(seconds))
        for fault, times in sorted(account.times.items())
        for seconds in [account.recoveries_s[fault]]
    ]


def markdown_of(outcome: Outcome) -> str:
    """Write the table as a page shows it."""
    times = sum(row.times for row in outcome.rows)
    done = f"{times} faults"
    if outcome.part == "kills":
        done = f"{times} times `SIGKILL`, at {outcome.steps} named steps and at random times"
    lines = [
        f"`{outcome.command}`, {outcome.date}:",
        f"{done}, in {outcome.seconds / 60:.0f} minutes on two busy cores;",
        f"{outcome.rounds} rounds committed, {outcome.updates} updates acknowledged. A round that nobody disturbs took",
        f"{outcome.round_s:.1f} s.",
        "",
        "| fault | times | lost or doubled | until the next committed round: median | worst |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {row.fault} | {row.times} | {row.lost} | {row.median_s:.1f} s | {row.worst_s:.1f} s |"
            for row in outcome.rows
        ),
    ]
    return "\n".join(lines) + "\n"


def fill_page(page: Path, outcome: Outcome) -> None:
    """Put the table between the page's marks."""
    begin, end = f"<!-- {outcome.part} -->\n", f"<!-- /{outcome.part} -->"
    head, found, rest = page.read_text().partition(begin)
    _, found_end, tail = rest.partition(end)
    if not found or not found_end:
        raise SystemExit(f"{page} must have a place between {begin.strip()} and {end}")
    page.write_text(head + begin + markdown_of(outcome) + end + tail)

"""Follows a job over the REST API and shows its rounds: a live table on a terminal, a line a round elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
from rich.console import Console
from rich.live import Live
from rich.table import Table

from bnncore.errors import BitfleetError

POLL_S = 0.25
TIMEOUT_S = 30.0
COLUMNS = ("round", "accuracy", "devices", "down a device", "up a device", "slowest device")


class JobEndedError(BitfleetError):
    """The job ended without its last round, or not in time."""


@dataclass(frozen=True)
class Outcome:
    """A completed job, as the REST API tells it."""

    job: dict[str, Any]
    rounds: list[dict[str, Any]]


def format_bytes(number: float) -> str:
    """Write a size for people: 1.5 KiB, 20.3 MiB."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def round_cells(round_: dict[str, Any], rounds_total: int) -> tuple[str, ...]:
    """Write one round as the cells of ``COLUMNS``."""
    accuracy, seconds = round_["accuracy"], round_["device_seconds_max"]
    is_open = round_["state"] != "COMMITTED"  # its sums are not complete
    return (
        f"{round_['round']} of {rounds_total}",
        "..." if accuracy is None else f"{accuracy:.1f} %",
        f"{round_['accepted']} of {round_['devices']}",
        "..." if is_open else format_bytes(round_["down_bytes_per_device"]),
        "..." if is_open else format_bytes(round_["up_bytes_per_device"]),
        "..." if is_open or seconds is None else f"{seconds:.1f} s",
    )


class JobWatch:
    """Follows the one job of a coordinator.

    Args:
      url: the coordinator's HTTP address.
      console: where to show the rounds.
      check: called between polls; raises when there is nothing left to wait for.
    """

    def __init__(self, url: str, console: Console, check: Callable[[], None]) -> None:
        self._url = url
        self._console = console
        self._check = check

    def run(self, timeout_s: float) -> Outcome:
        """Follow the job to its end.

        Raises:
          JobEndedError: it failed, or did not complete within ``timeout_s`` seconds.
        """
        deadline = time.monotonic() + timeout_s
        with httpx.Client(base_url=self._url, timeout=TIMEOUT_S, trust_env=False) as client, self._display() as show:
            job_id = _get(client, "/api/v1/jobs")[0]["id"]
            while True:
                self._check()
                job = _get(client, f"/api/v1/jobs/{job_id}")
                rounds = _get(client, f"/api/v1/jobs/{job_id}/rounds?limit=500&updates=false")
                is_over = job["state"] not in ("PENDING", "RUNNING")
                show(job, rounds, is_over)
                if is_over:
                    break
                if time.monotonic() > deadline:
                    raise JobEndedError(
                        f"the job had {job['rounds_committed']} of {job['rounds_total']} rounds after {timeout_s:.0f} s"
                    )
                time.sleep(POLL_S)
        if job["state"] != "COMPLETED":
            raise JobEndedError(f"the job ended as {job['state']}: {job['reason']}")
        return Outcome(job, rounds)

    @contextlib.contextmanager
    def _display(self) -> Iterator[Callable[[dict[str, Any], list[dict[str, Any]], bool], None]]:
        if self._console.is_terminal:
            with Live(console=self._console, refresh_per_second=8) as live:
                yield lambda job, rounds, is_over: live.update(_table(job, rounds))
            return
        self._console.print("".join(f"{name:<16}" for name in COLUMNS).rstrip())
        shown: set[int] = set()

        def show(job: dict[str, Any], rounds: list[dict[str, Any]], is_over: bool) -> None:
            for round_ in rounds:
                # The accuracy comes a moment after the commit.
                is_complete = round_["state"] == "COMMITTED" and (is_over or round_["accuracy"] is not None)
                if is_complete and round_["round"] not in shown:
                    shown.add(round_["round"])
                    cells = round_cells(round_, job["rounds_total"])
                    self._console.print("".join(f"{cell:<16}" for cell in cells).rstrip(), highlight=False)

        yield show


def _table(job: dict[str, Any], rounds: list[dict[str, Any]]) -> Table:
    table = Table(title=f"{job['name']}: {job['state'].lower()}", title_justify="left")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for round_ in rounds:
        style = None if round_["state"] == "COMMITTED" else "dim"
        table.add_row(*round_cells(round_, job["rounds_total"]), style=style)
    return table


def _get(client: httpx.Client, path: str) -> Any:
    response = client.get(path)
    response.raise_for_status()
    return response.json()

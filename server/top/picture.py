"""The board as tables for a terminal of 80 columns or more."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from server.api.status_views import RunningJobView, StatusView
from server.api.views import DeviceView
from server.top.board import Board

_BARS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 16
_STATE_STYLES = {"TRAINING": "green", "PAUSED": "yellow", "OFFLINE": "dim", "SUBMITTING": "cyan", "DOWNLOADING": "cyan"}
_REFUSALS_SHOWN = 6


def sparkline(values: Sequence[float], width: int = _SPARK_WIDTH) -> str:
    """Draw values as bars from their smallest to their largest; the newest where there are too many."""
    values = values[-width:]
    if not values:
        return ""
    low, high = min(values), max(values)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in values)


def draw(board: Board, url: str, height: int, note: str = "") -> RenderableType:
    """Draw the board.

    Args:
      board: what to show.
      url: of the coordinator.
      height: of the terminal, in lines.
      note: how up to date it is.
    """
    status = board.status
    if status is None:
        return Text(note or f"asking {url} ...")
    parts: list[RenderableType] = [_heading(status, url, note), _jobs(board, status)]
    refusals = list(board.refusals)[-_REFUSALS_SHOWN:][::-1]
    used = 8 + len(status.running) + len(board.waiting) + (len(refusals) + 2 if refusals else 0)
    parts.append(_devices(board.devices, status, max(3, height - used)))
    if refusals:
        table = _table("refused", "round", "by", "why")
        for refusal in refusals:
            table.add_row(
                Text(refusal.device_id), f"{refusal.round}", refusal.status.lower(), Text(refusal.reason), style="red"
            )
        parts.append(table)
    return Group(*parts)


def _heading(status: StatusView, url: str, note: str) -> Text:
    heading = Text(no_wrap=True, overflow="ellipsis")
    heading.append("bitfleet", style="bold").append(f" {status.version}  {url}  ")
    heading.append(f"{status.devices_connected} of {status.devices_known} devices  ")
    ended = "".join(f"  {count} {state.lower()}" for state, count in sorted(status.jobs.items()) if state != "RUNNING")
    heading.append(f"{len(status.running)} running{ended}")
    down, up = (f"{num_bytes / 2**20:.1f} MiB" for num_bytes in (status.down_bytes, status.up_bytes))
    used = status.disk.used_bytes / 2**20
    when = datetime.fromisoformat(status.now).astimezone().strftime("%H:%M:%S")
    heading.append(f"\n{when}  {down} down  {up} up  {used:.1f} MiB on disk")
    if note:
        heading.append(f"  {note}", style="yellow")
    return heading


def _jobs(board: Board, status: StatusView) -> RenderableType:
    if not status.running and not board.waiting:
        return Text("\nno job runs: bitfleet-server jobs create FILE", style="dim")
    table = _table("job", "progress", "rounds", "round now", "accuracy", "", "ε")
    for job in status.running:
        accuracies = board.accuracies(job.id)
        table.add_row(
            Text(job.id),
            ProgressBar(total=max(1, job.rounds_total), completed=job.rounds_committed, width=8),
            f"{job.rounds_committed}/{job.rounds_total}",
            _round(job),
            f"{accuracies[-1]:.1f} %" if accuracies else "",
            Text(sparkline(accuracies), style="green"),
            "" if job.privacy is None else f"{job.privacy.epsilon:.2f}",
        )
        if job.waits_for:
            table.add_row("", "", "", Text(job.waits_for, style="yellow"))
    for waiting in board.waiting:
        begins = "" if waiting.starts_at is None else f" from {waiting.starts_at[:16]}"
        table.add_row(
            Text(waiting.id), "", f"{waiting.rounds_committed}/{waiting.rounds_total}", waiting.state.lower() + begins
        )
    return table


def _round(job: RunningJobView) -> str:
    if job.round is None:
        return "between rounds"
    step = "" if job.exchange is None or job.exchange.step is None else f" {job.exchange.step.lower()}"
    return f"{job.round} {(job.state or '').lower()}{step} {job.accepted}/{job.devices}"


def _devices(devices: list[DeviceView], status: StatusView, most: int) -> RenderableType:
    if not devices:
        return Text("\nno device yet: bitfleet-server token create", style="dim")
    table = _table("device", "state", "task", "memory", "°C", "samples", "cannot work because")
    for device in devices[:most]:
        step = f"{100 * device.step // device.total_steps} %" if device.total_steps else ""
        why = device.paused_by or next(iter(device.ineligible.values()), "")
        table.add_row(
            Text(device.device_id),
            Text(device.state.lower(), style=_STATE_STYLES.get(device.state, "")),
            step,
            f"{device.pss_bytes / 2**20:.0f} MiB" if device.pss_bytes else "",
            "" if device.temperature_c is None else f"{device.temperature_c:.0f}",
            str(device.num_examples),
            Text(why, style="yellow"),
        )
    if status.devices_known > min(most, len(devices)):
        table.add_row(Text(f"and {status.devices_known - min(most, len(devices))} more", style="dim"))
    return table


_NUMBERS = ("rounds", "accuracy", "ε", "task", "memory", "°C", "samples", "round")

_REASONS = ("why", "cannot work because")
"""Columns that have what the others leave."""
_LEAST_WIDTHS = {
    "progress": 8,
    "job": 16,
    "device": 16,
    "refused": 16,
    "state": 9,
    "by": 8,
    "round": 5,
    "round now": 16,
}


def _table(*columns: str) -> Table:
    table = Table(
        box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold dim", expand=columns[-1] in _REASONS
    )
    for name in columns:
        table.add_column(
            name,
            no_wrap=True,
            overflow="ellipsis",
            justify="right" if name in _NUMBERS else "left",
            max_width=24 if name in ("job", "device", "refused") else None,
            min_width=_LEAST_WIDTHS.get(name),
            ratio=1 if name in _REASONS else None,
        )
    return table

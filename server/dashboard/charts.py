"""What a job's charts show, as data: the browser's script knows how it is drawn, and in which colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import BaseModel

from server.api.views import JobView, RoundView
from server.dashboard.formats import integer, joules, number, percent, size

Value = Callable[[RoundView], float | None]


class Series(BaseModel):
    """One curve: a value for each round of its chart, null where there is none."""

    name: str
    values: list[float | None]


class Chart(BaseModel):
    """Curves over rounds."""

    title: str
    unit: str
    """Of the values: %, bytes, J or nothing."""
    rounds: list[int]
    last_round: int
    """The rounds of the job: how far the axis goes."""
    series: list[Series]
    words: str
    """What it shows, for those who do not see it."""


def charts_of(job: JobView, rounds: Sequence[RoundView]) -> list[Chart]:
    """Build those of a job's charts for which there is something to show."""
    # The closing exchange of statistics is no round of the job.
    shown = [round_ for round_ in rounds if round_.state == "COMMITTED" and round_.round <= job.rounds_total]

    def chart(title: str, unit: str, tell: Callable[[float], str], curves: dict[str, Value]) -> Chart | None:
        series = [Series(name=name, values=[value(round_) for round_ in shown]) for name, value in curves.items()]
        series = [one for one in series if any(value is not None for value in one.values)]
        if not series:
            return None
        return Chart(
            title=title,
            unit=unit,
            rounds=[round_.round for round_ in shown],
            last_round=job.rounds_total,
            series=series,
            words=f"{title} by round: " + "; ".join(_in_words(one, shown, tell) for one in series),
        )

    charts = [
        chart(
            "Accuracy",
            "%",
            percent,
            {"held-out set": lambda r: r.accuracy, "devices' own validation parts": lambda r: r.local_accuracy},
        ),
        chart(
            "Loss",
            "",
            number,
            {"held-out set": lambda r: r.loss, "devices' own validation parts": lambda r: r.local_loss},
        ),
        chart(
            "Bytes per device",
            "bytes",
            size,
            {"down": lambda r: r.down_bytes_per_device, "up": lambda r: r.up_bytes_per_device},
        ),
        chart("Energy per device", "J", joules, {"energy": lambda r: r.joules_per_device}),
        chart("Epsilon spent", "", number, {"epsilon": lambda r: r.epsilon}),
    ]
    if any(round_.accepted != round_.devices for round_ in shown):
        charts.append(chart("Devices", "", integer, {"accepted": lambda r: r.accepted, "asked": lambda r: r.devices}))
    return [one for one in charts if one is not None]


def _in_words(series: Series, rounds: Sequence[RoundView], tell: Callable[[float], str]) -> str:
    known = [(round_.round, value) for round_, value in zip(rounds, series.values, strict=True) if value is not None]
    (_, first), (number_, last) = known[0], known[-1]
    return f"{series.name} {tell(first)} at first, {tell(last)} in round {number_}"

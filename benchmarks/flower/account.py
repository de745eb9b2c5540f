"""What the measurements of both sides come to: rounds' overhead, and how many times more one side takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Round:
    """One round as its coordinator saw it."""

    began: float
    """Seconds of any clock that all rounds share."""
    training_s: float
    """Of the slowest device, as devices report it."""


@dataclass(frozen=True)
class Run:
    """One side's rounds with all of its devices."""

    side: str
    rounds: tuple[Round, ...]
    down_bytes: tuple[int, ...]
    """TCP payload to each device, from its first connection to the end of the job."""
    up_bytes: tuple[int, ...]
    device_pss_peak_bytes: tuple[int, ...]
    """Of each device, the sum over its processes."""
    accuracy: float
    """Percent of the held-out set, after the last round."""

    @property
    def bytes_per_device_round(self) -> float:
        """Both directions."""
        return (sum(self.down_bytes) + sum(self.up_bytes)) / (len(self.down_bytes) * len(self.rounds))

    @property
    def overheads_s(self) -> list[float]:
        """Seconds from a round's beginning to the next one's, less its slowest device's training."""
        pairs = zip(self.rounds, self.rounds[1:], strict=False)
        return [after.began - before.began - before.training_s for before, after in pairs]

    def to_json_object(self) -> dict[str, Any]:
        """Return the fields and what follows from them."""
        return {
            **asdict(self),
            "bytes_per_device_round": self.bytes_per_device_round,
            "overheads_s": self.overheads_s,
        }


def flower_rounds(report: dict[str, Any]) -> tuple[Round, ...]:
    """Read the rounds in what the server's app writes."""
    return tuple(Round(row["began"], max(row["training_seconds"])) for row in report["rounds"])


def fleet_rounds(rows: Sequence[dict[str, Any]], count: int) -> tuple[Round, ...]:
    """Read the first ``count`` rounds of the REST API; the one after the last, without training, is not among them."""
    return tuple(
        Round(datetime.fromisoformat(row["opened_at"]).timestamp(), row["training_seconds_max"])
        for row in sorted(rows, key=lambda row: row["round"])[:count]
    )


def compare(runs: Sequence[Run]) -> dict[str, float]:
    """Say how many times more Flower takes: medians of each side over all of its runs, devices and rounds."""
    flower, fleet = ([run for run in runs if run.side == side] for side in ("flower", "bitfleet"))

    def ratio(values: Any) -> float:
        return float(median(values(flower)) / median(values(fleet)))

    return {
        "bytes_ratio": ratio(lambda side: [run.bytes_per_device_round for run in side]),
        "overhead_ratio": ratio(lambda side: [seconds for run in side for seconds in run.overheads_s]),
        "device_pss_ratio": ratio(lambda side: [peak for run in side for peak in run.device_pss_peak_bytes]),
    }


def follow_line(points: dict[int, float], target: int) -> float:
    """Fit a line through points by least squares, and give its value at ``target``."""
    count, mean_x, mean_y = len(points), sum(points) / len(points), sum(points.values()) / len(points)
    if count < 2:
        raise ValueError(f"a line needs two points, got {count}")
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points.items()) / sum((x - mean_x) ** 2 for x in points)
    return mean_y + slope * (target - mean_x)

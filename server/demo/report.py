"""What the demo tells at its end: to people in a few lines, to machines as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import fmean

from server.demo.watch import Outcome, format_bytes


@dataclass(frozen=True)
class DemoResult:
    """The measured outcome; its fields are the keys of the JSON file."""

    accuracy: float
    """Of the fleet's last model on the held-out set, percent."""
    best_alone: float
    """Of the best device that trained alone, percent."""
    rounds: int
    devices: int
    down_bytes_per_device_round: float
    """Serialised messages of tasks and models to one device, mean over rounds."""
    up_bytes_per_device_round: float
    """Serialised messages of an update from one device, mean over rounds."""
    device_pss_peak_bytes: int
    """Highest sum over all processes of any one device."""
    coordinator_rss_peak_bytes: int
    """VmHWM of the coordinator's process."""
    seconds: float
    """The whole demo, from splitting the data to the last device trained alone."""

    def to_json_object(self) -> dict[str, float | int]:
        """Return the fields as a JSON object."""
        return asdict(self)


def make_result(
    outcome: Outcome, alone: list[float], *, device_peaks: list[int], coordinator_peak: int, seconds: float
) -> DemoResult:
    """Collect the outcome of a completed job."""
    rounds = outcome.rounds
    return DemoResult(
        accuracy=outcome.job["accuracy"],
        best_alone=max(alone),
        rounds=outcome.job["rounds_committed"],
        devices=len(alone),
        down_bytes_per_device_round=fmean(round_["down_bytes_per_device"] for round_ in rounds),
        up_bytes_per_device_round=fmean(round_["up_bytes_per_device"] for round_ in rounds),
        device_pss_peak_bytes=max(device_peaks),
        coordinator_rss_peak_bytes=coordinator_peak,
        seconds=seconds,
    )


def summary(result: DemoResult, alone: dict[str, float], examples: dict[str, int], local_steps: int) -> str:
    """Write the outcome for people.

    Args:
      result: what was measured.
      alone: accuracy in percent of each device by itself.
      examples: training samples of each device.
      local_steps: steps of a device in a round.
    """
    each = "\n".join(
        f"  {name:<20} {alone[name]:5.1f} %   on its own {examples[name]} samples, {result.rounds * local_steps} steps"
        for name in alone
    )
    return (
        f"accuracy on the held-out set\n"
        f"  {'together':<20} {result.accuracy:5.1f} %   {result.rounds} rounds of {local_steps} steps a device\n"
        f"{each}\n"
        f"a device and round    {format_bytes(result.down_bytes_per_device_round)} down, "
        f"{format_bytes(result.up_bytes_per_device_round)} up (the model; no sample and no label)\n"
        f"memory at its peak    device {format_bytes(result.device_pss_peak_bytes)} (PSS, all its processes), "
        f"coordinator {format_bytes(result.coordinator_rss_peak_bytes)} (RSS)\n"
        f"time                  {result.seconds:.0f} s"
    )

"""What a simulation tells at its end: to people in a few lines, to machines as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bnncore.cli.output import format_bytes
from server.simulate.ledger import Traffic
from server.simulate.scenario import Scenario


@dataclass(frozen=True)
class SimulationResult:
    """The outcome; its fields are the keys of the JSON file."""

    accuracy: float
    """Of the last round's model on the held-out set, percent."""
    accuracy_by_round: list[float]
    bits_per_weight_up: float
    """8 x serialised bytes of all update messages / (binary weights x cohort x rounds)."""
    bits_per_weight_down: float
    """The same of all messages that carried models."""
    digest: str
    """Of the last model's weights."""
    rss_peak_bytes: int
    """VmHWM of this process."""
    devices: int
    cohort: int
    rounds: int
    updates: int
    """Updates sent: fewer than cohort x rounds where devices were away."""
    seconds: float
    """Of this run, without what an earlier one had done in the same work folder."""

    def to_json_object(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return asdict(self)


def make_result(
    scenario: Scenario, accuracies: list[float], traffic: Traffic, *, digest: str, rss_peak: int, seconds: float
) -> SimulationResult:
    """Collect the outcome of a completed job."""
    shares = scenario.spec.num_binary_weights * scenario.cohort * scenario.rounds
    return SimulationResult(
        accuracy=accuracies[-1],
        accuracy_by_round=accuracies,
        bits_per_weight_up=8 * traffic.up_bytes / shares,
        bits_per_weight_down=8 * traffic.down_bytes / shares,
        digest=digest,
        rss_peak_bytes=rss_peak,
        devices=scenario.devices,
        cohort=scenario.cohort,
        rounds=scenario.rounds,
        updates=traffic.updates,
        seconds=seconds,
    )


def summary(result: SimulationResult, num_weights: int) -> str:
    """Write the outcome for people; ``num_weights`` are the network's binary ones."""
    best = max(result.accuracy_by_round)
    down, up = (
        format_bytes(round(bits * num_weights / 8)) for bits in (result.bits_per_weight_down, result.bits_per_weight_up)
    )
    return (
        f"accuracy              {result.accuracy:.2f} % after {result.rounds} rounds (best round {best:.2f} %)\n"
        f"a weight and round    {result.bits_per_weight_down:.3f} bits down ({down} a device), "
        f"{result.bits_per_weight_up:.3f} bits up ({up})\n"
        f"updates               {result.updates} of {result.cohort} x {result.rounds}\n"
        f"digest                {result.digest}\n"
        f"memory at its peak    {format_bytes(result.rss_peak_bytes)} (RSS, all devices and the coordinator)\n"
        f"time                  {result.seconds:.0f} s"
    )

"""What a simulation tells at its end: to people in a few lines, to machines as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bnncore.cli.output import format_bytes
from server.simulate.ledger import Traffic
from server.simulate.scenario import Scenario
from server.storage.base import RoundRecord, UpdateRecord


@dataclass(frozen=True)
class RoundResult:
    """A committed round.

    Attributes:
      number: counted from 1.
      accuracy: of its model on the evaluation set, percent; None: not evaluated (yet).
      loss: likewise, mean in nats.
      local_accuracy: of its model on the devices' own validation parts, percent; None: they have none.
      training_loss: mean of the devices' training losses by samples, nats; None where only their sum is known.
      updates: taken in.
      down_bytes: serialised bytes of all messages that carried models.
      up_bytes: of those that carried updates.
      seconds: wall time.
    """

    number: int
    accuracy: float | None
    loss: float | None
    local_accuracy: float | None
    training_loss: float | None
    updates: int
    down_bytes: int
    up_bytes: int
    seconds: float


def round_result(record: RoundRecord, rows: Sequence[UpdateRecord], traffic: Traffic) -> RoundResult:
    """Put together what is known of a committed round."""
    counted = [row for row in rows if row.status == "ACCEPTED"]
    told = [(row.num_examples, row.loss) for row in counted if row.loss is not None]
    examples = sum(count for count, _ in told)
    return RoundResult(
        number=record.round_number,
        accuracy=record.accuracy,
        loss=record.loss,
        local_accuracy=record.local_accuracy,
        training_loss=sum(count * loss for count, loss in told) / examples if examples else None,
        updates=len(counted),
        down_bytes=traffic.down_bytes,
        up_bytes=traffic.up_bytes,
        seconds=(record.committed_at or record.opened_at) - record.opened_at,
    )


@dataclass(frozen=True)
class SimulationResult:
    """The outcome; its fields are the keys of the JSON file."""

    accuracy: float
    """Of the last round's model on the held-out set, percent."""
    accuracy_by_round: list[float]
    local_accuracy_by_round: list[float]
    """On the devices' own validation parts, weighted by their samples; empty where they have none."""
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
    secure_aggregation: str | None
    """``masked``; ``sum only``: the same vectors were added up without masks, and no keys and shares are in the bits;
    null: updates travelled in the clear."""
    epsilon: float | None
    """What the models may have told of a device; None without privacy."""
    seconds: float
    """Of this run, without what an earlier one had done in the same work folder."""

    def to_json_object(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return asdict(self)


def make_result(
    scenario: Scenario,
    rounds: Sequence[RoundResult],
    traffic: Traffic,
    *,
    digest: str,
    epsilon: float | None,
    rss_peak: int,
    seconds: float,
) -> SimulationResult:
    """Collect the outcome of a completed job."""
    shares = scenario.spec.num_binary_weights * scenario.cohort * scenario.rounds
    accuracies = [round_.accuracy for round_ in rounds if round_.accuracy is not None]
    return SimulationResult(
        accuracy=accuracies[-1],
        accuracy_by_round=accuracies,
        local_accuracy_by_round=[round_.local_accuracy for round_ in rounds if round_.local_accuracy is not None],
        bits_per_weight_up=8 * traffic.up_bytes / shares,
        bits_per_weight_down=8 * traffic.down_bytes / shares,
        digest=digest,
        rss_peak_bytes=rss_peak,
        devices=scenario.devices,
        cohort=scenario.cohort,
        rounds=scenario.rounds,
        updates=traffic.updates,
        epsilon=epsilon,
        secure_aggregation=None if scenario.secure is None else "masked" if scenario.has_masks else "sum only",
        seconds=seconds,
    )


def summary(result: SimulationResult, num_weights: int) -> str:
    """Write the outcome for people; ``num_weights`` are the network's binary ones."""
    best = max(result.accuracy_by_round)
    down, up = (
        format_bytes(round(bits * num_weights / 8)) for bits in (result.bits_per_weight_down, result.bits_per_weight_up)
    )
    own = ""
    if result.local_accuracy_by_round:
        own = f"local accuracy        {result.local_accuracy_by_round[-1]:.2f} % of the devices' validation parts\n"
    secure = ""
    if result.secure_aggregation is not None:
        told = (
            "added up under masks" if result.secure_aggregation == "masked" else "added up in the ring, WITHOUT masks"
        )
        secure = f"single updates        {told}\n"
    private = "" if result.epsilon is None else f"privacy               epsilon {result.epsilon:.3f}, of a device\n"
    return (
        f"accuracy              {result.accuracy:.2f} % after {result.rounds} rounds (best round {best:.2f} %)\n"
        f"{own}"
        f"a weight and round    {result.bits_per_weight_down:.3f} bits down ({down} a device), "
        f"{result.bits_per_weight_up:.3f} bits up ({up})\n"
        f"updates               {result.updates} of {result.cohort} x {result.rounds}\n"
        f"{secure}{private}"
        f"digest                {result.digest}\n"
        f"memory at its peak    {format_bytes(result.rss_peak_bytes)} (RSS, all devices and the coordinator)\n"
        f"time                  {result.seconds:.0f} s"
    )

"""Accuracy on MNIST under distributed differential privacy at the level of a device, by number of devices.

    python -m benchmarks.private_accuracy --devices 100,1000,10000 --json PATH --data DIR

Every device trains (``train_locally``), bounds and rounds what it learnt (``ValueForm``), and the sum gets the discrete
Gaussian noise of all devices, as in a fleet; strategy and account are the coordinator's. Left out are masks, which
cancel in the sum exactly, and transport. The devices' noise is drawn at once, one number of the same variance for each
value, which differs from their sum by less than 10^-15 (``bnncore.secure.noise``). It follows from --seed, so that a
run can be had again; a device's never does.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bnncore.codec import PayloadKind, get_state_codec, payload_digest
from bnncore.data import Dataset, dirichlet_shards, open_dataset
from bnncore.engine import Engine
from bnncore.federated import EngineShelf, LocalTask, LocalTraining, SummedUpdates, train_locally
from bnncore.predictor import Predictor
from bnncore.secure.noise import SeededRandomness
from bnncore.secure.privacy import Privacy
from bnncore.secure.scales import public_scales
from bnncore.secure.values import ValueForm, ValueSum, Vector
from bnncore.seeds import derive_seed
from bnncore.spec import ModelSpec
from bnncore.state import State
from bnncore.training import evaluate
from bnncore.zoo import mlp
from server.privacy import epsilon_after, multiplier_for
from server.strategies import FoldingStrategy, make_strategy

LEAST_PART = 0.8
"""Of the devices, that must be in a sum: so many share the noise out. All take part here, so there is more noise."""


@dataclass(frozen=True)
class Fleet:
    """One run."""

    devices: int
    rounds: int
    local_steps: int
    batch_size: int
    hidden: tuple[int, ...]
    strategy: str
    strategy_params: dict[str, float]
    weights: str
    clip: float
    epsilon: float | None
    """None: bounds alone, and no noise."""
    delta: float
    seed: int

    @property
    def releases(self) -> int:
        """Sums that a device is in: after the last round come the statistics of its model."""
        return self.rounds + 1

    @property
    def noise_multiplier(self) -> float:
        return 1.0 if self.epsilon is None else multiplier_for(self.epsilon, self.delta, self.releases)

    @property
    def privacy(self) -> Privacy:
        least = max(1, math.floor(LEAST_PART * self.devices))
        return Privacy("distributed", self.noise_multiplier, least, self.clip if self.weights == "fixed" else 0.0)


class Run:
    """Trains one fleet."""

    def __init__(self, fleet: Fleet, train: Dataset, test: Dataset) -> None:
        self._fleet = fleet
        self._train, self._test = train, test
        self._shards = dirichlet_shards(train.labels, fleet.devices, math.inf, fleet.seed)
        self.spec: ModelSpec = mlp(input_shape=train.input_shape, widths=fleet.hidden, classes=len(train.classes))
        strategy = make_strategy(fleet.strategy, fleet.strategy_params)
        assert isinstance(strategy, FoldingStrategy)
        self._strategy = strategy
        self._summed = SummedUpdates("signs" if fleet.weights == "signs" else "fixed", privacy=fleet.privacy)
        self._shelf = EngineShelf()
        self._codec = get_state_codec("int8")

    def play(self) -> list[float]:
        """Play all rounds; gives the accuracy of every version in percent, the first model's first."""
        engine = Engine(self.spec, batch_size=1)
        engine.initialise(self._fleet.seed)
        state = {name: np.asarray(array, np.float32) for name, array in engine.state().items()}
        for tensor in self.spec.tensors:
            if tensor.role == "weight":
                state[tensor.name] /= np.float32(127)
        memory: State | None = None
        accuracies: list[float] = []
        for number in range(1, self._fleet.releases + 1):
            began = time.monotonic()
            is_closing = number > self._fleet.rounds
            total = self._sum(number, state, "statistics" if is_closing else "update")
            if self._fleet.epsilon is not None:
                total = total.with_noise(SeededRandomness(derive_seed(self._fleet.seed, "noise", number)))
            accumulator = self._strategy.init(self.spec, is_difference=True)
            self._strategy.fold_sum(accumulator, total, public_scales(self.spec, self._step_scale(number)))
            new, memory = self._strategy.finish(accumulator, state, memory)
            accuracies.append(self._accuracy({**state, **self._statistics(new)}))
            state = new
            print(
                f"{self._fleet.devices} devices, version {number - 1}: {accuracies[-1]:.2f} %, "
                f"{time.monotonic() - began:.0f} s",
                flush=True,
            )
        return accuracies

    def _sum(self, number: int, state: State, kind: PayloadKind) -> ValueSum:
        fleet, form = self._fleet, self.form(kind)
        model = self._codec.encode(self.spec, state, kind="model")
        steps = fleet.local_steps if kind == "update" else 0
        # what signs tell has no size: the schedule is in what they are worth, not in the devices' steps
        scale = 1.0 if fleet.weights == "signs" else self._step_scale(number)
        training = LocalTraining("bitfleet", "", fleet.batch_size, steps, scale, fleet.seed, statistics_batches=20)

        def vectors() -> Any:
            for device, shard in enumerate(self._shards):
                task = LocalTask(
                    device_id=f"device-{device:05}",
                    round_number=number,
                    model_digest=payload_digest(model),
                    initial_seed=fleet.seed,
                    spec_json=self.spec.to_json(),
                    down_codec="int8",
                    up_codec="sign",
                    classes=self._train.classes,
                    training=training,
                    summed=self._summed,
                )
                with self._train.subset(shard) as samples:
                    yield Vector.from_bytes(form, train_locally(task, model, samples, self._shelf).payload)

        return form.add_up(vectors())

    def form(self, kind: PayloadKind) -> ValueForm:
        return self._summed.form(self.spec, kind, frozenset())

    def _step_scale(self, number: int) -> float:
        """As ``JobConfig.step_scale`` of a linear schedule."""
        return 1.0 - 0.9 * (number - 1) / max(1, self._fleet.rounds - 1) if number <= self._fleet.rounds else 0.1

    def _statistics(self, state: State) -> State:
        return {tensor.name: state[tensor.name] for tensor in self.spec.tensors if tensor.is_statistic}

    def _accuracy(self, state: State) -> float:
        deployed = self._codec.decode(self.spec, self._codec.encode(self.spec, state, kind="model"), kind="model")
        predictor = Predictor(self.spec, {**deployed, **self._statistics(state)}, batch_size=100)
        return evaluate(predictor, self._test).accuracy


def measure(fleet: Fleet, data: Path | None) -> dict[str, Any]:
    """Run one fleet; gives its row of the report."""
    began = time.monotonic()
    with (
        open_dataset("mnist", data, split="train") as train,
        open_dataset("mnist", data, split="test") as test,
    ):
        run = Run(fleet, train, test)
        accuracies = run.play()
    form = run.form("update")
    layout = form.layout(fleet.devices)
    weights = next(part for part in form.parts if part.name == "weights")
    return {
        **asdict(fleet),
        "accuracy": accuracies[-1],
        "accuracy_by_version": accuracies,
        "noise_multiplier": None if fleet.epsilon is None else fleet.noise_multiplier,
        "epsilon_spent": None
        if fleet.epsilon is None
        else epsilon_after(form.accounted_multiplier, fleet.delta, fleet.releases),
        "num_weights": weights.size,
        "bits_per_weight_up": 8 * layout.num_bytes / weights.size,
        "noise_of_sum": None if fleet.epsilon is None else fleet.privacy.sum_sigma(weights, fleet.devices),
        "seconds": time.monotonic() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", default="100,1000,10000")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--local-steps", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--hidden", default="64", help="widths of the hidden layers")
    parser.add_argument("--strategy", default="fedavg")
    parser.add_argument("--strategy-params", type=json.loads, default={"server_step": 50.0})
    parser.add_argument("--weights", choices=("signs", "fixed"), default="signs")
    parser.add_argument("--clip", type=float, default=200.0, help="of fixed weights: L2 norm in steps of 1/127")
    parser.add_argument("--epsilon", default="8,none", help="budgets; none: the same bounds, and no noise")
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for devices in map(int, args.devices.split(",")):
        for epsilon in (None if text == "none" else float(text) for text in args.epsilon.split(",")):
            fleet = Fleet(
                devices,
                args.rounds,
                args.local_steps,
                args.batch_size,
                tuple(int(width) for width in args.hidden.split(",")),
                args.strategy,
                args.strategy_params,
                args.weights,
                args.clip,
                epsilon,
                args.delta,
                args.seed,
            )
            rows.append(measure(fleet, args.data))
            if args.json is not None:
                args.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    for row in rows:
        print(f"{row['devices']} devices, epsilon {row['epsilon']}: {row['accuracy']:.2f} %")


if __name__ == "__main__":
    main()

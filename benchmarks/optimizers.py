"""What each optimizer learns, how often its weights flip, and what the rounding alone does; see docs/optimizers.md.

  python -m benchmarks.optimizers curves --data DIR --json FILE --plot FILE.png   the paper's MLP on MNIST
  python -m benchmarks.optimizers noise                                           gradients that say nothing
  python -m benchmarks.optimizers scales --data DIR                               how large a layer's gradient is

``curves`` goes on where the JSON file ends: runs whose preset digest, seed and epochs it holds are not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.data import Dataset, open_dataset
from bnncore.engine import Engine
from bnncore.optimizer import FLOAT_OPTIMIZERS, OPTIMIZERS, OptimizerConfig, resolve_preset
from bnncore.reference.optimizers import Moments, update_weights
from bnncore.reference.randomness import Purpose, random_stream
from bnncore.schedule import build_schedule
from bnncore.training import batches, evaluate, train
from bnncore.zoo import mlp

BATCH = 100
ROUNDING_VARIANCE = 1 / 6
"""Mean of f (1 - f) over fractions f spread evenly in [0, 1): what stochastic rounding adds to a variance."""
SGD_GRADIENT = 1 / 64
"""Mean magnitude of a layer's real gradient times the root of its number of weights, as ``scales`` finds it."""


def run_curve(
    name: str, seed: int, epochs: int, schedule: str, train_set: Dataset, test_set: Dataset
) -> dict[str, Any]:
    """Train the paper's MLP once.

    Returns:
      ``accuracy`` in percent and ``flips``, the share of weights that change sign in a step, each by epoch.
    """
    preset = resolve_preset("bitfleet", name)
    engine = Engine(mlp(), batch_size=BATCH, preset=preset, seed=seed)
    engine.initialise()
    accuracy: list[float] = []
    flips: list[float] = []
    shares: list[float] = []
    before: list[NDArray[np.bool_]] = []

    def on_step(done: int, total: int, loss: float) -> None:
        if done % 100 not in (50, 51):  # one step in a hundred is watched
            return
        signs = [value < 0 for key, value in engine.state(copy=False).items() if key.endswith(".weight")]
        if done % 100 == 51:
            changed = sum(int((a != b).sum()) for a, b in zip(before, signs, strict=True))
            shares.append(changed / sum(s.size for s in signs))
        before[:] = signs

    def on_epoch(_: object) -> None:
        accuracy.append(evaluate(engine, test_set).accuracy)
        flips.append(float(np.mean(shares)))
        shares.clear()

    train(
        engine,
        train_set,
        epochs=epochs,
        seed=seed,
        schedule=build_schedule(schedule),
        on_step=on_step,
        on_epoch=on_epoch,
    )
    return {
        "optimizer": name,
        "preset_digest": preset.digest,
        "seed": seed,
        "schedule": schedule,
        "accuracy": accuracy,
        "flips": [float(f"{share:.3g}") for share in flips],
    }


def curves(arguments: argparse.Namespace) -> None:
    """Run what is missing, print a table of what there is, and draw it."""
    path = Path(arguments.json) if arguments.json else None
    runs: list[dict[str, Any]] = json.loads(path.read_text()) if path and path.exists() else []

    def key(run: dict[str, Any]) -> tuple[Any, ...]:
        return run["preset_digest"], run["seed"], run["schedule"], len(run["accuracy"])

    done = {key(run) for run in runs}
    with (
        open_dataset("mnist", arguments.data, split="train") as train_set,
        open_dataset("mnist", arguments.data, split="test") as test_set,
    ):
        for seed in range(arguments.seeds):
            for name in arguments.optimizers:
                digest = resolve_preset("bitfleet", name).digest
                if (digest, seed, arguments.schedule, arguments.epochs) in done:
                    continue
                run = run_curve(name, seed, arguments.epochs, arguments.schedule, train_set, test_set)
                runs.append(run)
                print(f"{name} seed {seed}: {run['accuracy'][-1]:.2f} %", file=sys.stderr, flush=True)
                if path:
                    path.write_text("[\n" + ",\n".join(json.dumps(run) for run in runs) + "\n]\n")
    print(f"{'optimizer':10} % at a quarter, half, three quarters, the end | by seed | flips of a million a step")
    for name, group in by_optimizer(runs).items():
        quarters = [len(group[0]["accuracy"]) * part // 4 - 1 for part in (1, 2, 3, 4)]
        mean = np.mean([run["accuracy"] for run in group], axis=0)
        flips = np.mean([run["flips"] for run in group], axis=0)
        print(
            f"{name:10} {' '.join(f'{mean[q]:6.2f}' for q in quarters)} | "
            f"{', '.join(format(run['accuracy'][-1], '.2f') for run in group)} | "
            f"{' '.join(f'{1e6 * flips[q]:6.0f}' for q in quarters)}"
        )
    if arguments.plot:
        draw(runs, Path(arguments.plot))


def by_optimizer(runs: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Group runs whose constants are the present ones."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if run["preset_digest"] == resolve_preset("bitfleet", run["optimizer"]).digest:
            groups.setdefault(run["optimizer"], []).append(run)
    return groups


def draw(runs: Iterable[dict[str, Any]], path: Path) -> None:
    """Draw accuracy and flips by epoch, the mean of the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name, group in by_optimizer(runs).items():
        epochs = np.arange(1, len(group[0]["accuracy"]) + 1)
        accuracy = np.array([run["accuracy"] for run in group])
        (line,) = left.plot(epochs, accuracy.mean(axis=0), label=name, linewidth=1.2)
        left.fill_between(epochs, accuracy.min(axis=0), accuracy.max(axis=0), alpha=0.12, color=line.get_color())
        right.plot(epochs, np.mean([run["flips"] for run in group], axis=0), label=name, linewidth=1.2)
    left.set(xlabel="epoch", ylabel="test accuracy in %", ylim=(94, None))
    left.legend(frameon=False)
    right.set(xlabel="epoch", ylabel="share of weights that flip in a step", yscale="log")
    figure.savefig(path, dpi=100, metadata={"Software": None})


@dataclass(frozen=True)
class Noise:
    """What an optimizer does with gradients that are independent and normal, of mean 0 and mean magnitude 1.

    Under sgd they are ``SGD_GRADIENT`` times as large, over the root of the number of weights.

    Attributes:
      flips: share of weights that change sign in a step.
      deviation: standard deviation of the integer average or momentum; of the latent weight where there is none.
    """

    flips: float
    deviation: float


def simulate(o: OptimizerConfig, scale: float, *, steps: int, warm_up: int, count: int = 4096) -> Noise:
    """Feed noise to ``count`` weights, started where such a walk ends: spread evenly over their range."""
    rng = np.random.default_rng(0)
    is_float = o.name in FLOAT_OPTIMIZERS
    unit = SGD_GRADIENT / np.sqrt(count) if o.name == "sgd" else 1.0
    weights: NDArray[Any] = rng.uniform(-1, 1, (1, count)).astype(np.float32)
    if not is_float:
        weights = rng.integers(-127, 128, (1, count))
    moments = Moments(np.zeros(weights.shape, weights.dtype), np.zeros(weights.shape, weights.dtype))
    watched = weights if o.name == "latent8" else moments.first
    flips = 0
    squares = 0.0
    for step in range(warm_up + steps):
        gradient = np.rint(1000 * np.sqrt(np.pi / 2) * rng.standard_normal(weights.shape)).astype(np.int64)
        before = weights < 0
        stream = random_stream(0, step, 0, Purpose.UPDATE)
        update_weights(o, weights, moments, gradient, np.float32(1e-3 * unit), scale, step + 1, stream)
        if step >= warm_up:
            flips += int((before != (weights < 0)).sum())
            squares += float(np.square(watched, dtype=np.float64).mean())
    return Noise(flips / (steps * count), float(np.sqrt(squares / steps) / unit))


def foretell(o: OptimizerConfig, scale: float) -> Noise:
    """Give what the analysis in docs/optimizers.md says that ``simulate`` will find."""
    variance = np.pi / 2  # of a normal gradient whose mean magnitude is 1
    magnitude = np.sqrt(2 / np.pi)  # mean magnitude over standard deviation
    if o.name == "latent8":  # |u| spreads evenly; a walk crosses 0 as often as it moves by a unit, over its places
        return Noise(127 * o.step_size * scale / 255, float(np.sqrt((255**2 - 1) / 12)))
    if o.name == "bop":
        gamma = o.gamma * scale
        inflow = gamma * 127 / o.range
        deviation = np.sqrt((inflow**2 * variance + ROUNDING_VARIANCE) / (2 * gamma - gamma**2))
        threshold = o.threshold * 127 / o.range / deviation
        x = np.linspace(0, threshold, 1001)
        passage = np.sqrt(2 * np.pi) * np.trapezoid(np.exp(x * x / 2), x)  # from -threshold to threshold, in 1 / gamma
        return Noise(gamma / passage, float(deviation))
    if o.name == "adam":  # the momentum over the root of the variance
        deviation = np.sqrt(variance * (1 - o.beta1) / (1 + o.beta1))
        return Noise(o.step_size * scale * magnitude * deviation / np.sqrt(variance) / 2, float(deviation))
    if o.name == "sgd":
        deviation = np.sqrt(variance / (1 - o.momentum**2))
        return Noise(o.step_size * scale * SGD_GRADIENT * magnitude * deviation / 2, float(deviation))
    inflow = (1 - o.momentum) * o.momentum_unit
    deviation = np.sqrt((inflow**2 * variance + ROUNDING_VARIANCE) / (1 - o.momentum**2))
    return Noise(127 * o.step_size * scale * magnitude * deviation / o.momentum_unit / 255, float(deviation))


def noise(arguments: argparse.Namespace) -> None:
    """Print flips and deviations, measured and foretold."""
    print("optimizer   scale | flips of a million a step | standard deviation")
    for name, o in OPTIMIZERS.items():
        for scale in (1.0, 0.1):
            warm_up = int(5 / (o.gamma * scale)) if name == "bop" else 100
            found, told = simulate(o, scale, steps=arguments.steps, warm_up=warm_up), foretell(o, scale)
            print(
                f"{name:10} {scale:6} | measured {1e6 * found.flips:8.1f}, foretold {1e6 * told.flips:8.1f} | "
                f"measured {found.deviation:7.3f}, foretold {told.deviation:7.3f}"
            )


def scales(arguments: argparse.Namespace) -> None:
    """Print the mean magnitude of each layer's weight gradient, plain and times two roots."""
    with open_dataset("mnist", arguments.data, split="train") as dataset:
        for widths in ((256, 256, 256, 256), (64, 1024, 64, 1024), (1024, 64, 512, 128)):
            spec = mlp((28, 28), widths, 10)
            engine = Engine(spec, batch_size=BATCH, preset=resolve_preset("bitfleet", "adam"))
            engine.initialise()
            for step, indices in enumerate(batches(dataset.num_examples, BATCH, seed=0, epoch=0)):
                dataset.read(indices, engine.input)
                engine.labels[:] = dataset.labels[indices]
                if step == arguments.after:
                    break
                engine.step()
            trace = engine.step_traced()["blocks"]
            real = np.array([np.abs(b["grad_weights"]).mean() * b["grad_y_scale"] for b in trace])
            fan_in = np.array([block.fan_in for block in spec.blocks])
            count = fan_in * [block.out_channels for block in spec.blocks]
            print(f"784-{'-'.join(map(str, widths))}-10 after {arguments.after} steps")
            for title, values in (
                ("1000 x mean |dW|", 1e3 * real),
                ("x sqrt(fan-in)", real * np.sqrt(fan_in)),
                ("x sqrt(weights)", real * np.sqrt(count)),
            ):
                columns = " ".join(f"{value:8.4f}" for value in values)
                print(f"  {title:18} {columns}   largest / smallest {values.max() / values.min():5.1f}")


def main(argv: list[str] | None = None) -> int:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("curves", help="train every optimizer")
    command.add_argument("--data", type=Path, help="folder of MNIST (default: $BITFLEET_DATA)")
    command.add_argument("--epochs", type=int, default=24)
    command.add_argument("--seeds", type=int, default=3)
    command.add_argument("--schedule", default="linear")
    command.add_argument(
        "--optimizers", type=lambda text: text.split(","), default=list(OPTIMIZERS), metavar="NAME,..."
    )
    command.add_argument("--json", help="where the runs are kept")
    command.add_argument("--plot", help="where to draw them (needs matplotlib)")
    command.set_defaults(run=curves)
    command = commands.add_parser("noise", help="gradients that say nothing")
    command.add_argument("--steps", type=int, default=5000)
    command.set_defaults(run=noise)
    command = commands.add_parser("scales", help="how large a layer's gradient is")
    command.add_argument("--data", type=Path, help="folder of MNIST (default: $BITFLEET_DATA)")
    command.add_argument("--after", type=int, default=100, help="steps of training before (default: 100)")
    command.set_defaults(run=scales)
    arguments = parser.parse_args(argv)
    arguments.run(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Accuracy and loss of the presets side by side: the same network, data, order of samples and seeds, in one program.

    python -m benchmarks.accuracy --model mlp --dataset mnist --epochs 24 --seeds 0,1,2
    python -m benchmarks.accuracy --model cnv --dataset cifar10 --epochs 3
    python -m benchmarks.accuracy --model binarynet --dataset cifar10 --batch-size 40 --max-steps 200 --windows 10
    python -m benchmarks.accuracy --model binarynet --dataset cifar10 --epochs 3
    python -m benchmarks.accuracy --model resnete18 --dataset cifar10 --widths 16,32,64,128 --epochs 10

Prints, for every preset, the mean training loss over each of ``--windows`` equal parts of the run and the test accuracy
after each epoch; ``make accuracy`` runs all but the last, which takes hours more. With ``--state DIR`` a run that was
stopped goes on, and one that has ended is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bnncore.cli.options import parse_sizes
from bnncore.data import open_dataset
from bnncore.engine import Engine
from bnncore.optimizer import resolve_preset
from bnncore.resume import load_training, save_training
from bnncore.training import EpochResult, Progress, evaluate, train
from bnncore.zoo import build

SAVE_EVERY_S = 60.0
"""Between two writes of where a run stands."""


def run(args: argparse.Namespace, preset_name: str, seed: int) -> dict[str, Any]:
    """Train once, or go on where an earlier call was stopped; give losses by window and accuracies by epoch."""
    name, _, optimizer = preset_name.partition(":")
    preset = resolve_preset(name, optimizer or None)
    root = Path(args.data) if args.data else None
    with (
        open_dataset(args.dataset, root, split="train") as train_set,
        open_dataset(args.dataset, root, split="test") as test_set,
        tqdm(desc=f"{preset_name}, seed {seed}", unit="step", leave=False, disable=None) as bar,
    ):
        sizes = {} if args.widths is None else {"widths": args.widths}
        spec = build(args.model, input_shape=train_set.input_shape, classes=len(train_set.classes), **sizes)
        engine = Engine(spec, batch_size=args.batch_size, preset=preset, seed=seed, threads=args.threads)
        settings = {key: getattr(args, key) for key in ("dataset", "epochs", "max_steps", "windows")} | {"seed": seed}
        file = f"{args.model}-{args.dataset}-{args.epochs}-epochs-{preset_name}-seed-{seed}.run"
        state = None if args.state is None else args.state / file
        progress = Progress(notes=[[0.0] * args.windows, [0] * args.windows, [], None])
        if state is not None and state.is_file():
            progress = load_training(state, engine, settings)
            print(f"{preset_name}, seed {seed}: goes on after {progress.steps} steps", flush=True)
        sums, counts, accuracies, _ = progress.notes
        saved = time.monotonic()

        def save() -> None:
            nonlocal saved
            if state is not None:
                save_training(state, engine, progress, settings)
                saved = time.monotonic()

        def on_step(done: int, total: int, loss: float) -> None:
            window = (done - 1) * args.windows // total
            sums[window] += loss
            counts[window] += 1
            bar.total = total
            bar.update(done - bar.n)
            if time.monotonic() - saved > SAVE_EVERY_S:
                save()

        def on_epoch(epoch: EpochResult) -> None:
            accuracies.append(evaluate(engine, test_set).accuracy)
            save()

        result = train(
            engine,
            train_set,
            epochs=args.epochs,
            max_steps=args.max_steps,
            seed=seed,
            progress=progress,
            on_step=on_step,
            on_epoch=on_epoch,
        )
    if result.step_ms_median is not None:
        progress.notes[-1] = result.step_ms_median
    save()
    return {
        "preset": preset_name,
        "preset_digest": preset.digest,
        "seed": seed,
        "steps": result.steps,
        "loss_by_window": [total / count for total, count in zip(sums, counts, strict=True) if count],
        "accuracy_by_epoch": accuracies,
        "step_ms_median": progress.notes[-1],
        "plan_peak_bytes": engine.plan.peak_bytes,
        "weights_digest": engine.weights_digest(),
    }


def _line(row: dict[str, Any]) -> str:
    losses = " ".join(f"{loss:.3f}" for loss in row["loss_by_window"])
    marks = row["accuracy_by_epoch"]
    accuracies = " ".join(
        f"{a:.2f}" for a in (marks if len(marks) <= 6 else marks[len(marks) // 4 - 1 :: len(marks) // 4])
    )
    return f"{row['preset']:<18}seed {row['seed']}  loss {losses}  test % {accuracies}"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--widths", type=parse_sizes, metavar="N,N,...", help="as of bitfleet train, e.g. 16,32,64,128")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data", default=os.environ.get("BITFLEET_DATA"), help="data folder (default: BITFLEET_DATA)")
    parser.add_argument("--presets", default="standard,bitfleet", help="PRESET or PRESET:OPTIMIZER, comma-separated")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--windows", type=int, default=6, help="parts of the run to give the loss of (default: 6)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--state", type=Path, metavar="DIR", help="keep where each run stands here; the same command goes on from it"
    )
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args()
    if args.state is not None:
        args.state.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for seed in map(int, args.seeds.split(",")):
        for preset in args.presets.split(","):
            rows.append(run(args, preset, seed))
            print(_line(rows[-1]), flush=True)
    for preset in args.presets.split(","):
        last = [row["accuracy_by_epoch"][-1] for row in rows if row["preset"] == preset]
        print(f"{preset:<18}mean of the last epoch {statistics.mean(last):.2f} % over {len(last)} seed(s)")
    if args.json:
        settings = {
            key: getattr(args, key) for key in ("model", "widths", "dataset", "batch_size", "epochs", "max_steps")
        }
        Path(args.json).write_text(json.dumps({**settings, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()

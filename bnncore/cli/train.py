"""``bitfleet train``: train a network on this machine and report accuracy, time and memory."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnncore.cli.interruption import noticed
from bnncore.cli.options import (
    add_data_options,
    add_json_option,
    add_model_options,
    add_preset_options,
    build_model,
    parse_augmentation,
    positive_int,
    unsigned_int,
)
from bnncore.cli.output import (
    check_destination,
    format_bytes,
    rss_peak_bytes,
    say,
    testing_bar,
    warn_about_threads,
    write_json,
)
from bnncore.errors import ConfigurationError
from bnncore.schedule import SCHEDULES, build_schedule

if TYPE_CHECKING:
    from bnncore.data import Dataset, InputRange
    from bnncore.engine import Engine
    from bnncore.schedule import Schedule
    from bnncore.training import EpochResult

__all__ = ["add_parser"]

_TAGS = {
    "loss/train": "loss",
    "loss/test": "test_loss",
    "accuracy/train": "train_accuracy",
    "accuracy/test": "accuracy",
}
"""What TensorBoard is told of an epoch."""

_EPILOG = """\
examples:
  bitfleet train --dataset digits --epochs 20 --batch-size 20 --widths 128
      train on the digits that ship with scikit-learn: a few seconds
  bitfleet train --dataset mnist --data ~/data --download --epochs 5
      fetch MNIST once, then train the 784-256-256-256-256-10 network on it
  bitfleet train --dataset cifar10 --data ~/data --download --augment shift=4,flip --schedule cosine
      photographs; the first time, a process of its own prepares them, which takes up to 100 MiB
  bitfleet train --data my-images --save model.safetensors --json result.json
      your own data: a folder of idx files (bnncore.data.write_idx makes one)

  bitfleet train --model binarynet --dataset cifar10 --checkpoint run.safetensors --epochs 50
  bitfleet train --model binarynet --dataset cifar10 --resume run.safetensors --epochs 50
      days of work, stopped with Ctrl-C or by a power cut, and gone on with

The same --seed gives the same weights, bit for bit, on any number of threads and any processor; their digest is
printed at the end. --max-steps 0 does everything but train, to see what memory the program itself takes.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand to the command line."""
    parser = commands.add_parser(
        "train",
        help="train a network on this machine",
        description="Train a binary network on this machine.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_options(parser)
    add_data_options(parser)
    add_preset_options(parser)
    parser.add_argument(
        "--batch-size", type=positive_int, default=100, metavar="N", help="samples a step (default: 100)"
    )
    parser.add_argument("--epochs", type=positive_int, default=5, metavar="N", help="passes over the data (default: 5)")
    parser.add_argument("--max-steps", type=unsigned_int, metavar="N", help="stop after N steps")
    parser.add_argument(
        "--seed", type=unsigned_int, default=0, metavar="N", help="decides everything random (default: 0)"
    )
    parser.add_argument(
        "--schedule",
        choices=sorted(SCHEDULES),
        default="linear",
        help="how the step size changes: falls to 0 (linear, cosine), stays (constant), or halves when the training "
        "loss finds no new low (plateau); default: linear",
    )
    parser.add_argument(
        "--patience", type=positive_int, metavar="N", help="epochs without a new low before plateau halves (default: 3)"
    )
    parser.add_argument(
        "--augment",
        type=parse_augmentation,
        metavar="shift=N,flip",
        help="shift each training image by up to N pixels (black enters), mirror every second one; either or both",
    )
    parser.add_argument(
        "--statistics",
        type=unsigned_int,
        metavar="N",
        help="batches that batch norm's statistics are taken anew from before each test; 0 keeps the running ones, "
        "which lag behind the weights (default: 50)",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="keep the run itself in FILE, at the start, after each epoch and on Ctrl-C, so that --resume can go on "
        "with it",
    )
    parser.add_argument(
        "--checkpoint-every", type=positive_int, metavar="N", help="write the --checkpoint every N steps as well"
    )
    parser.add_argument(
        "--resume",
        metavar="FILE",
        help="go on with the run that a --checkpoint holds, given the options it was started with; it ends with the "
        "same weights as if it had never stopped",
    )
    parser.add_argument("--save", metavar="FILE", help="write the trained network to a safetensors checkpoint")
    parser.add_argument(
        "--tensorboard",
        metavar="DIR",
        help="write event files for TensorBoard to DIR: each step's loss, and tests",
    )
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Run the subcommand."""
    check_destination(args.json, "--json")
    _check_files(args)
    # All that training will need is imported now, so that what it adds in memory is its own.
    from bnncore.checkpoint import save_checkpoint
    from bnncore.cli.datasets import open_split, range_of
    from bnncore.engine import Engine, isa_selected
    from bnncore.optimizer import resolve_preset

    preset = resolve_preset(args.preset, args.optimizer)
    schedule = build_schedule(args.schedule, patience=args.patience)
    with (
        open_split(args, "train") as train_set,
        open_split(args, "test", range_of(train_set.description)) as test_set,
    ):
        input_range = range_of(train_set.description)
        if input_range is not None and args.input_range is None:
            say(f"input range, column by column: {_listed(input_range)}", args.json)
        spec = build_model(args, input_shape=train_set.input_shape, classes=len(train_set.classes))
        check_destination(args.checkpoint, "--checkpoint", 12 * spec.num_binary_weights + (1 << 16))
        check_destination(args.save, "--save", 4 * spec.num_binary_weights + (1 << 16))
        warn_about_threads(args.threads)
        engine = Engine(
            spec,
            batch_size=args.batch_size,
            preset=preset,
            seed=args.seed,
            threads=args.threads,
            keep_products=args.keep_products,
        )
        result = _train_and_evaluate(args, engine, schedule, train_set, test_set)
    if args.max_steps != 0 or args.save:
        result["weights_digest"] = engine.weights_digest()
        if args.save:
            state = engine.state(copy=False)
            extra = {key: result[key] for key in ("accuracy", "preset", "optimizer", "preset_digest", "seed")}
            extra |= {"classes": list(train_set.classes)}
            if input_range is not None:
                extra |= {"input_range": input_range.to_dict()}  # what `evaluate` and `predict` must do too
            save_checkpoint(args.save, spec, state, extra=extra)
    result["isa"] = isa_selected()
    result["rss_peak_bytes"] = rss_peak_bytes()
    say(_summary(result, args.save), args.json)
    write_json(result, args.json)


def _listed(input_range: InputRange) -> str:
    pairs = [f"{low:g} to {high:g}" for low, high in zip(input_range.low, input_range.high, strict=True)]
    return ", ".join(pairs[:8]) + (f", ... ({len(pairs)} columns)" if len(pairs) > 8 else "")


def _check_files(args: argparse.Namespace) -> None:
    """Make sure that no file is written over another, nor over days of work."""
    if args.checkpoint and args.resume and Path(args.checkpoint) != Path(args.resume):
        raise ConfigurationError("--resume goes on writing to its own file. Leave --checkpoint out")
    if args.checkpoint_every and not (args.checkpoint or args.resume):
        raise ConfigurationError("--checkpoint-every needs to know where. Give --checkpoint FILE")
    if args.checkpoint and not args.resume and Path(args.checkpoint).is_file():
        raise ConfigurationError(
            f"--checkpoint {args.checkpoint} is there already. Go on with that run: --resume {args.checkpoint}, "
            "remove the file to start anew, or choose another"
        )
    kept_in = "--resume" if args.resume else "--checkpoint"
    options = {kept_in: args.resume or args.checkpoint, "--save": args.save, "--json": args.json}
    taken: dict[Path, str] = {}
    for option, place in options.items():
        if place and (other := taken.setdefault(Path(place).resolve(), option)) != option:
            raise ConfigurationError(f"{other} and {option} are the same file, {place}. Choose another for one of them")
    if args.resume and not Path(args.resume).exists():
        raise ConfigurationError(f"there is no run in {args.resume}. Start one with --checkpoint {args.resume}")


def _train_and_evaluate(
    args: argparse.Namespace, engine: Engine, schedule: Schedule, train_set: Dataset, test_set: Dataset
) -> dict[str, Any]:
    from tqdm import tqdm

    from bnncore.resume import load_training, save_training
    from bnncore.tensorboard import EventWriter
    from bnncore.training import STATISTICS_BATCHES, Progress, check_fits, evaluate, train

    check_fits(engine, test_set)
    settings = {name: getattr(args, name) for name in ("seed", "epochs", "max_steps", "schedule", "patience")}
    settings |= {"augment": None if args.augment is None else str(args.augment)}
    statistics = STATISTICS_BATCHES if args.statistics is None else args.statistics
    settings |= {"statistics": statistics}
    settings |= {"dataset": train_set.name, "examples": train_set.num_examples}
    kept_in = args.resume or args.checkpoint
    progress = Progress()
    if args.resume:
        progress = load_training(args.resume, engine, settings)
        say(f"goes on after {progress.steps} steps", args.json)
    epochs: list[dict[str, Any]] = progress.notes
    with (
        noticed() as interruption,
        tqdm(desc="training", unit="step", leave=False, disable=not sys.stderr.isatty()) as bar,
        contextlib.nullcontext() if args.tensorboard is None else EventWriter(args.tensorboard) as events,
    ):

        def keep() -> None:
            save_training(kept_in, engine, progress, settings)

        if args.checkpoint and not args.resume:
            keep()  # a run that is cut off in its first epoch can be resumed too

        def on_step(done: int, total: int, loss: float) -> None:
            if interruption.wanted:
                if kept_in:
                    keep()
                    bar.close()
                    say(f"saved after {done} of {total} steps; go on with --resume {kept_in}", args.json)
                raise KeyboardInterrupt
            if args.checkpoint_every and done % args.checkpoint_every == 0:
                keep()
            if events is not None:
                events.add(done, {"loss/step": loss})
            bar.total = total
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update(done - bar.n)

        def on_epoch(epoch: EpochResult) -> None:
            bar.clear()
            with testing_bar() as show:

                def on_batch(done: int, total: int) -> None:
                    if interruption.wanted and not kept_in:
                        raise KeyboardInterrupt
                    show(done, total)

                tested = evaluate(engine, test_set, on_batch=on_batch)
            epochs.append(
                {
                    "epoch": epoch.number,
                    "steps": epoch.steps,
                    "loss": epoch.loss,
                    "train_accuracy": epoch.accuracy,
                    "seconds": epoch.seconds,
                    "test_loss": tested.loss,
                    "accuracy": tested.accuracy,
                }
            )
            say(_epoch_line(epochs[-1]), args.json)
            if events is not None:
                events.add(progress.steps, {tag: epochs[-1][name] for tag, name in _TAGS.items()})
                events.flush()
            if kept_in:
                keep()

        outcome = train(
            engine,
            train_set,
            epochs=args.epochs,
            max_steps=args.max_steps,
            seed=args.seed,
            augment=args.augment,
            schedule=schedule,
            progress=progress,
            statistics_batches=statistics,
            on_step=on_step,
            on_epoch=on_epoch,
        )
    return {
        "accuracy": epochs[-1]["accuracy"] if epochs else None,
        "epochs": epochs,
        "steps": outcome.steps,
        "step_ms_median": outcome.step_ms_median,
        "plan_peak_bytes": engine.plan.peak_bytes,
        "rss_peak_bytes": 0,
        "isa": "",
        "threads": args.threads,
        "model": engine.spec.name,
        "dataset": train_set.name,
        "batch_size": args.batch_size,
        "seed": args.seed,
        "schedule": args.schedule,
        "augment": None if args.augment is None else str(args.augment),
        "preset": engine.preset.name,
        "optimizer": engine.preset.optimizer.name,
        "preset_digest": engine.preset.digest,
        "weights_digest": None,
    }


def _epoch_line(epoch: dict[str, Any]) -> str:
    return (
        f"epoch {epoch['epoch']:>3}  loss {epoch['loss']:.4f}  train {epoch['train_accuracy']:5.2f} %  "
        f"test {epoch['accuracy']:5.2f} %  {epoch['seconds']:.1f} s"
    )


def _summary(result: dict[str, Any], saved: str | None) -> str:
    heading = (
        f"{result['model']} on {result['dataset']}, {result['steps']} steps of {result['batch_size']} samples, "
        f"preset {result['preset']} ({result['optimizer']}), {result['isa']}, {result['threads']} thread(s)"
    )
    lines = [heading]
    if result["epochs"]:
        lines.append(f"test accuracy    {result['accuracy']:.2f} %")
    if result["step_ms_median"] is not None:  # there is none when the saved run had ended already
        lines.append(f"a step           {result['step_ms_median']:.2f} ms (median)")
    lines.append(f"training memory  {format_bytes(result['plan_peak_bytes'])} (planned, all of it)")
    lines.append(
        f"whole process    {format_bytes(result['rss_peak_bytes'])} (peak resident, Python and NumPy included)"
    )
    if result["weights_digest"]:
        lines.append(f"weights          {result['weights_digest']}")
    if saved:
        lines.append(f"saved            {Path(saved)}")
    return "\n".join(lines)

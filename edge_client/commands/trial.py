"""``bitfleet-client try``: train on the device's own data, without a coordinator."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_client.commands.options import Commands, add_data, add_json, add_state, data_of, state_of
from edge_client.commands.output import show
from edge_client.errors import SettingsError
from edge_client.machine import memory_bytes

if TYPE_CHECKING:
    from edge_client.local.trial import Trial

__all__ = ["add_parsers"]


def add_parsers(commands: Commands) -> None:
    """Add the command."""
    trial = commands.add_parser(
        "try", help="train on this device's data for some minutes, without a coordinator, and test the model"
    )
    add_data(trial)
    trial.add_argument("--minutes", metavar="N", default="2", help="to train at most (default: 2)")
    trial.add_argument(
        "--model", metavar="NAME", help="a network of the zoo: mlp, cnv, ... (default: a small one that suits the data)"
    )
    trial.add_argument(
        "--input-range",
        metavar="LOW,HIGH",
        help="of data that are real numbers: what becomes the network's input (default: what they lie in)",
    )
    trial.add_argument("--threads", metavar="N", default="1", help="threads of a step (default: 1)")
    trial.add_argument("--memory-budget", metavar="SIZE", help="memory to train in, e.g. 64MiB (default: any)")
    add_json(trial)
    add_state(trial)
    trial.set_defaults(act=_try)


def _try(arguments: argparse.Namespace) -> int:
    seconds, threads, budget = _amounts(arguments)
    from tqdm import tqdm

    from bnncore.cli.output import rss_peak_bytes
    from bnncore.data import InputRange
    from edge_client.local.trial import run_trial

    state = state_of(arguments)
    given = arguments.input_range
    with tqdm(
        total=100,
        desc="training",
        bar_format="{desc} {percentage:3.0f} %|{bar}| {elapsed}{postfix}",
        leave=False,
        disable=not sys.stderr.isatty(),
    ) as bar:

        def on_progress(done: float, loss: float) -> None:
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update(100 * done - bar.n)

        trial = run_trial(
            arguments.dataset,
            data_of(arguments),
            model=arguments.model,
            seconds=seconds,
            threads=threads,
            max_memory=budget,
            input_range=None if given is None else InputRange.parse(given),
            keep=state.trial_file,
            on_progress=on_progress,
        )
    facts = _facts(trial, state.trial_file, rss_peak_bytes())
    show(facts, _text(trial, facts), arguments.json)
    return 0


def _amounts(arguments: argparse.Namespace) -> tuple[float, int, int]:
    from bnncore.amounts import read_bytes

    try:
        minutes, threads = float(arguments.minutes), int(arguments.threads)
        budget = memory_bytes() if arguments.memory_budget is None else read_bytes(arguments.memory_budget)
    except ValueError as error:
        raise SettingsError(f"--minutes, --threads and --memory-budget must be amounts: {error}") from None
    if not 0 < minutes <= 1e5 or threads < 1:
        raise SettingsError(f"--minutes must be above 0 and --threads at least 1, got {minutes:g} and {threads}")
    return 60 * minutes, threads, budget


def _facts(trial: Trial, path: Path, rss_bytes: int) -> dict[str, Any]:
    return {
        "model": trial.spec.name,
        "path": str(path),
        "classes": list(trial.classes),
        "examples": trial.examples,
        "held_out": trial.held_out,
        "accuracy": trial.accuracy,
        "accuracy_by_chance": trial.by_chance,
        "confusion": trial.confusion.tolist(),
        "batch_size": trial.batch_size,
        "steps": trial.steps,
        "step_ms_median": trial.step_ms,
        "plan_peak_bytes": trial.plan_bytes,
        "rss_peak_bytes": rss_bytes,
    }


def _text(trial: Trial, facts: dict[str, Any]) -> str:
    from bnncore.cli.output import format_bytes
    from edge_client.local.confusion import render_confusion

    train_bytes, peak_bytes = format_bytes(trial.plan_bytes), format_bytes(facts["rss_peak_bytes"])
    lines = (
        f"trained   {trial.spec.name} on {trial.examples} samples, {trial.steps} steps of {trial.batch_size}",
        f"a step    {trial.step_ms:.2f} ms (median)",
        f"accuracy  {trial.accuracy:.1f} % of {trial.held_out} samples held out",
        f"by chance {trial.by_chance:.1f} %, by always saying the commonest class",
        f"memory    {train_bytes} to train in, {peak_bytes} the whole process at its peak",
        f"kept      {facts['path']}, for bitfleet-client predict",
    )
    return "\n".join([*lines, "", render_confusion(trial.confusion, trial.classes)])

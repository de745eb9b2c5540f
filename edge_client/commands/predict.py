"""``bitfleet-client predict``: classify pictures, or rows of numbers, with a model that lies on this device."""

from __future__ import annotations

import argparse
from pathlib import Path

from edge_client.commands.options import Commands, add_json, add_state, state_of
from edge_client.commands.output import show
from edge_client.errors import SettingsError
from edge_client.state_dir import StateDir

__all__ = ["add_parsers"]

_SHOWN = 3
"""Classes with their scores, for people."""


def add_parsers(commands: Commands) -> None:
    """Add the command."""
    predict = commands.add_parser("predict", help="classify pictures or rows of numbers with the last model here")
    predict.add_argument("files", nargs="+", metavar="FILE", help="a picture, or rows of numbers: .csv, .txt or .npy")
    predict.add_argument("--model", metavar="FILE", help="the model (default: the last best one of a job or of `try`)")
    add_json(predict)
    add_state(predict)
    predict.set_defaults(act=_predict)


def _predict(arguments: argparse.Namespace) -> int:
    model = Path(arguments.model) if arguments.model else _last_model(state_of(arguments))
    from edge_client.local.classify import Classifier

    classifier = Classifier(model)
    guesses = [guess for file in arguments.files for guess in classifier.classify(Path(file))]
    facts = {
        "model": str(model),
        "predictions": [{"source": guess.source, "class": guess.best, "scores": guess.scores} for guess in guesses],
    }
    lines = []
    for guess in guesses:
        scores = list(guess.scores.items())[:_SHOWN]
        lines.append(f"{guess.source}: " + ", ".join(f"{name} {100 * score:.1f} %" for name, score in scores))
    show(facts, "\n".join(lines), arguments.json)
    return 0


def _last_model(state: StateDir) -> Path:
    models = state.best_models.newest_first()
    if state.trial_file.exists():
        models.append(state.trial_file)
    if not models:
        raise SettingsError(
            f"there is no model in {state.root} yet: make one with bitfleet-client try --data DIR, take part in a job "
            "that has local_validation, or name one with --model FILE"
        )
    return max(models, key=lambda path: path.stat().st_mtime_ns)

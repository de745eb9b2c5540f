"""Simulations whose devices train on Ray: the model is that of a simulation here, whoever is lost on the way."""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bnncore.errors import ConfigurationError
from server.cli.simulate import add_simulate
from server.demo.memory import process_tree
from tests.server.simulate.federations import outcome, run, start

HARD = ("--recipe", "onebit", "--alpha", "0.5", "--seed", "5", "--local-steps", "100", "--absent", "0.2")
"""What devices keep between rounds counts, and so does who was away."""


def workers_of(pid: int) -> list[int]:
    """Find the processes that train: Ray names them so."""
    titles = {child: Path(f"/proc/{child}/cmdline") for child in process_tree(pid)}
    return [
        child for child, title in titles.items() if title.exists() and title.read_bytes().startswith(b"ray::Worker")
    ]


def has_trained(state: Path) -> bool:
    """Say whether a device has."""
    traffic = state / "traffic.jsonl"
    return traffic.exists() and traffic.stat().st_size > 0


def test_workers_that_are_killed_change_nothing(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'bitfleet[sim]'")
    here = run(tmp_path, *HARD)
    there = ("--engine", "ray", "--threads", "2", "--state", str(tmp_path / "work"))
    process = start(*HARD, *there, json_path=tmp_path / "ray.json")
    while process.poll() is None and not has_trained(tmp_path / "work"):
        time.sleep(0.02)
    victims = workers_of(process.pid)
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    _, complaints = process.communicate()

    assert process.returncode == 0, complaints.decode()
    assert victims
    assert outcome(json.loads((tmp_path / "ray.json").read_text())) == outcome(here)


def test_a_cluster_that_is_not_there_is_said() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'bitfleet[sim]'")
    arguments: Any = parsed("--engine", "ray", "--ray-address", "127.0.0.1:1")

    with pytest.raises(ConfigurationError, match=r"must be HOST:PORT of a Ray cluster, got '127\.0\.0\.1:1'"):
        arguments.command(arguments)


def parsed(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_simulate(parser.add_subparsers())
    return parser.parse_args(["simulate", "--dataset", "digits", "--widths", "32", "--rounds", "1", *options])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--engine", "ray"), r"pip install 'bitfleet\[sim\]'"),
        (("--engine", "ray", "--cpus-per-device", "1.5"), "whole number where it is above 1, got 1.5"),
        (("--cpus-per-device", "2"), "add --engine ray"),
    ],
)
def test_what_cannot_be_is_said(monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], complaint: str) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    arguments: Any = parsed(*options)

    with pytest.raises(ConfigurationError, match=complaint):
        arguments.command(arguments)

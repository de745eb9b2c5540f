"""``bitfleet-server demo``: lay out the data, run the fleet, compare, report."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from bnncore.data import open_dataset
from bnncore.errors import ConfigurationError
from server.demo.alone import train_alone
from server.demo.fleet import Fleet
from server.demo.memory import PeakSampler, rss_peak_bytes
from server.demo.report import DemoResult, make_result, summary
from server.demo.scenario import Scenario, choose, lay_out
from server.demo.signals import end_on_signals
from server.demo.watch import JobWatch
from server.job_files import load_job

ROOT = Path("build/demo")
TIMEOUT_S = 600.0


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; returns the process's exit code.

    Args:
      arguments: dataset, devices, rounds (None: the data set's own), json (a path, "-" or None) and stay.

    Raises:
      ConfigurationError: an argument or the data folder is wrong, or another demo runs here.
      ChildFailedError: a process of the demo ended by itself.
      JobEndedError: the job failed or took too long.
    """
    scenario = choose(arguments.dataset, num_devices=arguments.devices, rounds=arguments.rounds)
    # With --json -, standard output is for the machine alone.
    console = Console(stderr=arguments.json == "-", highlight=False, soft_wrap=True)
    with _own_folder(ROOT), end_on_signals(), scenario_run(scenario, ROOT, console) as (result, url):
        _write(result, arguments.json, console)
        if arguments.stay:
            console.print(f"coordinator and devices stay: {url}/ until Ctrl-C")
            with contextlib.suppress(SystemExit):  # the signal that is waited for
                signal.pause()
    return 0


@contextlib.contextmanager
def scenario_run(scenario: Scenario, root: Path, console: Console) -> Iterator[tuple[DemoResult, str]]:
    """Run one scenario under ``root`` and print it as it goes; its fleet ends with the block.

    Yields:
      The result, and where people reach the coordinator.
    """
    started = time.monotonic()
    data = _data_folder(scenario.dataset)
    job_file, folders = lay_out(scenario, data, root)
    names = [folder.parent.name for folder in folders]
    console.print(f"{scenario.dataset}, split over {len(folders)} devices under {root}/; logs are there too")
    with Fleet(root, job_file, folders) as fleet:
        console.print(f"dashboard {fleet.url}/ (while the demo runs)")
        with PeakSampler({name: child.pid for name, child in fleet.devices.items()}) as sampler:
            outcome = JobWatch(fleet.url, console, fleet.check).run(TIMEOUT_S)

        console.print("now each device alone ...")
        job = load_job(job_file)
        examples = {}
        for name, folder in zip(names, folders, strict=True):
            with open_dataset("idx", folder, split="train") as dataset:
                examples[name] = dataset.num_examples
        with open_dataset(scenario.dataset, data, split="test") as held_out:
            alone = {name: train_alone(job, folder, held_out) for name, folder in zip(names, folders, strict=True)}
        result = make_result(
            outcome,
            list(alone.values()),
            device_peaks=list(sampler.peaks.values()),
            coordinator_peak=rss_peak_bytes(fleet.coordinator.pid),
            seconds=time.monotonic() - started,
        )
        console.print(summary(result, alone, examples, scenario.local_steps))
        yield result, fleet.url


def _write(result: DemoResult, target: str | None, console: Console) -> None:
    text = json.dumps(result.to_json_object(), indent=2) + "\n"
    if target == "-":
        print(text, end="", flush=True)
    elif target is not None:
        path = Path(target)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        console.print(f"in numbers            {path}")


def _data_folder(dataset: str) -> Path | None:
    """Name the data folder as a job file needs it: absolute; None for what comes with a package."""
    root = os.environ.get("BITFLEET_DATA")
    return None if dataset == "digits" or not root else Path(root).resolve()


@contextlib.contextmanager
def _own_folder(root: Path) -> Iterator[None]:
    """Own ``root`` and clear it of what an earlier demo left; a failed demo's files stay to be looked at."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(f"another demo runs in {root.resolve()}; wait until it ends") from None
        for path in [root / "coordinator", *root.glob("device-*/"), *root.glob("*.log")]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        yield

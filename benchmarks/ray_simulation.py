"""A thousand simulated devices: bitfleet without Ray, bitfleet on Ray with a worker killed, and Flower on Ray.

    python -m benchmarks.ray_simulation --json build/ray_simulation.json

All three simulate the same fleet, one after the other in one run: MNIST in the same shares, the network ``mlp``, the
same rounds of the same local steps, every device in every round, two devices at once. In the middle of bitfleet's run
on Ray one of its workers is killed (SIGKILL); its digest must be that of the run without Ray. Flower trains the network
in float32 PyTorch and averages with its ``FedAvg``; bitfleet averages too (``fedavg``), sends 8 bits a weight either
way, and also evaluates every round.

Measured from outside, alike: seconds from the start of the process to its end, and the proportional set size of all
processes that it has started, Ray's own among them, twice a second, its peak. Flower lies in an environment of its own
under build/, see ``benchmarks.flower``; Ray is added to it. What is known is written after each side, and ``--sides``
leaves some of them out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.flower.processes import APP, make_flower_venv, versions
from bnncore.cli.output import check_destination, write_json
from bnncore.data import open_dataset, write_idx
from server.demo.memory import PeakSampler, process_tree
from server.simulate.cast import split

SIDES = ("local", "ray", "flower")
PLACES = ("json", "flower_venv", "data")
"""Options that say where things are, and change nothing that is measured."""
SAMPLING_S = 0.5
LOOK_S = 0.1


def write_data(folder: Path, data: Path | None, devices: int, seed: int) -> Path:
    """Write MNIST for Flower, and who has which samples; returns the file of the latter."""
    for part in ("train", "test"):
        with open_dataset("mnist", data, split=part) as dataset:
            samples = np.empty((dataset.num_examples, dataset.rows.row_bytes), np.uint8)
            dataset.read(np.arange(dataset.num_examples, dtype=np.uint32), samples)
            shaped = samples.reshape(-1, *dataset.input_shape)
            write_idx(folder, shaped, dataset.labels, part, classes=dataset.classes)
            if part == "train":
                shares = split(dataset, devices, float("inf"), seed)
    shards = folder / "shards.npz"
    np.savez(shards, **{str(number): share.numbers for number, share in enumerate(shares)})  # type: ignore[arg-type]
    return shards


@contextlib.contextmanager
def running(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command for the block; all that it has started is gone afterwards."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | environment)
        try:
            yield process
        finally:
            for pid in process_tree(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def measure(
    name: str, command: list[str], folder: Path, environment: dict[str, str], *, half: int = 0
) -> dict[str, Any]:
    """Run a simulation to its end; where ``half`` is given, kill a worker after so many updates."""
    log, ledger, killed = folder / f"{name}.log", folder / name / "traffic.jsonl", 0
    began = time.monotonic()
    with running(command, log, environment) as process, PeakSampler({name: process.pid}, SAMPLING_S) as sampler:
        while process.poll() is None:
            time.sleep(LOOK_S)
            if half and not killed and ledger.exists() and ledger.read_bytes().count(b"\n") >= half:
                killed = kill_worker(process.pid)
        seconds = time.monotonic() - began
    if process.returncode != 0:
        raise SystemExit(f"{name} ended with exit code {process.returncode}:\n{log.read_text()[-4000:]}")
    print(f"{name}: {seconds:.0f} s, {sampler.peaks[name] / 2**20:.0f} MiB", file=sys.stderr, flush=True)
    return {"seconds": seconds, "pss_peak_bytes": sampler.peaks[name], "workers_killed": killed}


def kill_worker(pid: int) -> int:
    """Kill a process that trains; Ray names them so. Returns how many were."""
    for child in process_tree(pid):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"ray::Worker"):
                os.kill(child, signal.SIGKILL)
                return 1
    return 0


def simulate(engine: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run bitfleet's side."""
    name = f"bitfleet-{engine}"
    command = [sys.executable, "-m", "server", "simulate", "--dataset", "mnist", "--devices", str(args.devices)]
    command += ["--rounds", str(args.rounds), "--local-steps", str(args.local_steps), "--engine", engine]
    command += ["--batch-size", str(args.batch_size), "--threads", str(args.workers), "--seed", str(args.seed)]
    command += ["--state", str(folder / name), "--json", str(folder / f"{name}.json")]
    command += ["--data", args.data] if args.data else []
    half = args.devices * args.rounds // 2 if engine == "ray" else 0
    measured = measure(name, command, folder, {}, half=half)
    result = json.loads((folder / f"{name}.json").read_text())
    return measured | {"digest": result["digest"], "accuracy": result["accuracy"], "rounds_s": result["seconds"]}


def simulate_flower(venv: Path, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run Flower's side."""
    data = folder / "mnist"
    shards, report = write_data(data, args.data and Path(args.data), args.devices, args.seed), folder / "flower.json"
    options = {name: getattr(args, name) for name in ("devices", "rounds", "local_steps", "batch_size", "workers")}
    path = folder / "options.json"
    path.write_text(json.dumps(options | {"data": str(data), "shards": str(shards), "report": str(report)}))
    command = [str(venv / "bin" / "python"), str(APP.parent / "simulation.py"), str(path)]
    environment = {"PYTHONPATH": str(APP), "FLWR_HOME": str(folder / "home")}
    environment |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    measured = measure("flower", command, folder, environment)
    result: dict[str, Any] = json.loads(report.read_text())
    return measured | result


def compare(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Set the sides that were played beside each other."""
    local, ray, flower = (runs.get(side) for side in SIDES)
    compared: dict[str, Any] = {}
    if local and ray:
        compared |= {"is_same_digest": local["digest"] == ray["digest"], "workers_killed": ray["workers_killed"]}
    if ray and flower:
        compared["seconds_ratio"] = flower["seconds"] / ray["seconds"]
        compared["pss_ratio"] = flower["pss_peak_bytes"] / ray["pss_peak_bytes"]
    return compared


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="DIR", help="where MNIST lies (default: $BITFLEET_DATA)")
    parser.add_argument("--flower-venv", metavar="DIR", default="build/flower-venv")
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--local-steps", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2, help="devices at once (default: 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sides", default=",".join(SIDES), help="to be played, in this order (default: all)")
    parser.add_argument("--json", metavar="PATH", help="write the result here; - = standard output")
    args = parser.parse_args()
    check_destination(args.json, "--json")
    sides = args.sides.split(",")
    if unknown := set(sides) - set(SIDES):
        parser.error(f"--sides are some of {','.join(SIDES)}, got {', '.join(sorted(unknown))}")
    venv = make_flower_venv(Path(args.flower_venv), simulation=True).absolute() if "flower" in sides else None
    load, runs = os.getloadavg(), dict[str, dict[str, Any]]()
    with tempfile.TemporaryDirectory(prefix="bitfleet-ray-simulation-") as name:
        for side in sides:
            if venv is not None and side == "flower":
                runs[side] = simulate_flower(venv, args, Path(name))
            else:
                runs[side] = simulate(side, args, Path(name))
            result = {
                **compare(runs),
                "runs": runs,
                "versions": ({} if venv is None else versions(venv)) | {"ray of bitfleet": version("ray")},
                "options": {key: value for key, value in vars(args).items() if key not in PLACES},
                "date": datetime.now(UTC).date().isoformat(),
                "load_average": [load[0], os.getloadavg()[0]],
            }
            if args.json != "-" or side == sides[-1]:
                write_json(result, args.json)


if __name__ == "__main__":
    main()

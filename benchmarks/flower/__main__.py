"""The same federation in bitfleet and in Flower, each in its real network mode, one after the other in one run.

    python -m benchmarks.flower --json build/flower.json --plot build/flower.png

Four devices learn MNIST, each side by the network ``mlp`` on the same shards for the same local steps: Flower with
SuperLink, a SuperNode a device and a float32 PyTorch network; bitfleet with ``bitfleet-server serve``, a
``bitfleet-client run`` a device and the recipe ``onebit``. Measured alike on both sides, from outside:

* bytes: TCP payload at a proxy in front of each device, from its first connection to the end of the job, by rounds;
* overhead: from the beginning of a round to that of the next, less the training of its slowest device;
* memory of a device: PSS of all of its processes, five times a second, its peak;
* memory of a coordinator: the same, while devices that only send play rounds of a larger network. Where fewer of them
  are played than the ratio is for, a line through the measured points is followed to that number, and said so.

Flower is installed into build/flower-venv unless ``--flower-venv`` names an environment. ``--only rounds`` leaves the
coordinators' memory out, which takes most of the time; ``--only coordinators`` measures nothing else.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.flower.account import Run, compare, follow_line
from benchmarks.flower.fleets import run_fleet, run_flower, write_data
from benchmarks.flower.plot import plot
from benchmarks.flower.processes import make_flower_venv, versions
from benchmarks.flower.servers import serve_fleet, serve_flower
from bnncore.cli.output import check_destination, write_json

PLACES = ("json", "plot", "flower_venv", "data")
"""Options that say where things are, and change nothing that is measured."""


def measure_servers(play: Callable[[int], dict[str, Any]], sizes: list[int], target: int) -> dict[str, Any]:
    """Measure a coordinator with several numbers of devices, and give its memory at ``target`` devices."""
    runs = []
    for devices in sizes:
        runs.append(run := play(devices))
        print(f"coordinator, {devices} devices: {run}", file=sys.stderr, flush=True)
    points = {run["devices"]: run["pss_peak_bytes"] for run in runs}
    measured = points.get(target)
    return {
        "runs": runs,
        "pss_peak_bytes": follow_line(points, target) if measured is None else measured,
        "is_extrapolated": measured is None,
    }


def compare_servers(venv: Path, args: argparse.Namespace, sizes: list[int]) -> dict[str, Any]:
    """Measure both coordinators, and say how many times more memory Flower's takes."""
    model, rounds, target = args.server_model, args.server_rounds, args.server_target
    ours = measure_servers(lambda devices: serve_fleet(model, devices, rounds), sizes, target)
    theirs = measure_servers(lambda devices: serve_flower(venv, model, devices, rounds), sizes, target)
    return {
        "server_pss_ratio": theirs["pss_peak_bytes"] / ours["pss_peak_bytes"],
        "server_pss_is_extrapolated": ours["is_extrapolated"] or theirs["is_extrapolated"],
        "servers": {"bitfleet": ours, "flower": theirs},
    }


def play_rounds(venv: Path, args: argparse.Namespace) -> list[Run]:
    """Play the federation on both sides, in turns."""
    shape = (args.rounds, args.local_steps, args.batch_size)
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="bitfleet-flower-data-") as folder:
        shards, held_out = write_data(Path(folder), Path(args.data) if args.data else None, args.devices)
        for _ in range(args.runs):
            runs += [run_flower(venv, shards, held_out, *shape), run_fleet(shards, held_out, *shape)]
            for run in runs[-2:]:
                print(
                    f"{run.side}: {run.bytes_per_device_round:.0f} B a device and round, overheads "
                    f"{', '.join(f'{seconds:.2f}' for seconds in run.overheads_s)} s, devices' peaks "
                    f"{', '.join(f'{peak / 2**20:.1f}' for peak in run.device_pss_peak_bytes)} MiB",
                    file=sys.stderr,
                )
    return runs


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="DIR", help="where MNIST lies (default: $BITFLEET_DATA)")
    parser.add_argument("--flower-venv", metavar="DIR", default="build/flower-venv")
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4, help="of each run (default: 4)")
    parser.add_argument("--local-steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--runs", type=int, default=2, help="of each side, taking turns (default: 2)")
    parser.add_argument("--only", choices=("rounds", "coordinators"), help="one part of it")
    parser.add_argument("--server-model", default="binarynet")
    parser.add_argument("--server-devices", default="10,20", metavar="N,N", help="played at the coordinators")
    parser.add_argument("--server-target", type=int, default=50, help="devices that the ratio is for (default: 50)")
    parser.add_argument("--server-rounds", type=int, default=2)
    parser.add_argument("--json", metavar="PATH", help="write the result here; - = standard output")
    parser.add_argument("--plot", metavar="FILE.png")
    args = parser.parse_args()
    check_destination(args.json, "--json")
    if args.rounds < 2:
        parser.error("--rounds must be at least 2: a round ends when the next one begins")
    if args.only and args.plot:
        parser.error("--plot shows all four quantities. Leave out --only")
    sizes = [int(number) for number in args.server_devices.split(",")]
    if args.server_target not in sizes and len(set(sizes)) < 2:
        parser.error("--server-devices needs two numbers to draw a line through, or --server-target itself")
    began = time.monotonic()
    venv = make_flower_venv(Path(args.flower_venv)).resolve()
    load = os.getloadavg()
    runs = [] if args.only == "coordinators" else play_rounds(venv, args)
    result = {
        **(compare(runs) if runs else {}),
        **({} if args.only == "rounds" else compare_servers(venv, args, sizes)),
        "versions": versions(venv),
        "options": {name: value for name, value in vars(args).items() if name not in PLACES},
        "runs": [run.to_json_object() for run in runs],
        "date": datetime.now(UTC).date().isoformat(),
        "load_average": [load[0], os.getloadavg()[0]],
        "seconds": time.monotonic() - began,
    }
    write_json(result, args.json)
    if args.plot:
        plot(result, args.plot)


if __name__ == "__main__":
    main()

"""What a coordinator does under many updates at once: its memory, and updates a second until they are durable.

    python -m benchmarks.streaming --model binarynet --devices 10,200 --json build/streaming.json

For each number of devices a new coordinator, a process with the classes of ``bitfleet-server serve``, plays one round
of a job over TLS on this machine. All devices are connected and have their updates encoded in files; then all send at
once. The time is from the first byte sent to the last acknowledgement, which the coordinator gives when an update is
decoded, folded and flushed to the disk with its row in the database. Its memory is VmHWM after the round is committed.
The senders share the processors with the coordinator. ``fold_only`` is decoding and folding alone, on one thread.
``processor_s_per_update`` is the processor time of an update in the coordinator, in its sender and in ``fold_only``:
on a machine that has other work to do the updates a second say less.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.streaming_ends import CERTIFICATE, KEY
from bnncore.cli.output import check_destination, format_bytes, write_json
from bnncore.codec import get_codec
from bnncore.zoo import build

SENDERS = 2
"""Processes that the devices are spread over."""


class End:
    """A process of ``streaming_ends``; leaving the block kills it."""

    def __init__(self, *words: str) -> None:
        command = [sys.executable, "-m", "benchmarks.streaming_ends", *words]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> End:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a process of the benchmark ended; its complaint stands above")
        event: dict[str, Any] = json.loads(line)
        return event

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()


def describe_job(model: str, codec: str, devices: int) -> dict[str, Any]:
    spec = build(model)
    is_difference = get_codec(codec).is_difference
    return {
        **({"recipe": "onebit"} if is_difference else {}),
        "name": "streaming",
        "model": {"zoo": model},
        "classes": [str(number) for number in range(spec.classes)],
        "input_shape": list(spec.input_shape),
        "rounds": 1,
        "min_devices": devices,
        "quorum": devices,
        "deadline_s": 1e6,
        "local_steps": 1,
        "up_codec": codec,
    }


def measure(model: str, codec: str, devices: int) -> dict[str, Any]:
    """Play one round; give the coordinator's peak and updates a second."""
    with tempfile.TemporaryDirectory(prefix="bitfleet-streaming-") as name, ExitStack() as stack:
        folder = Path(name)
        make_certificate(folder)
        job = folder / "job.json"
        job.write_text(json.dumps(describe_job(model, codec, devices)))
        coordinator = stack.enter_context(End("coordinator", name, str(job)))
        address = f"localhost:{coordinator.hear()['port']}"
        shares = [devices * i // SENDERS for i in range(SENDERS + 1)]
        senders = [
            stack.enter_context(End("devices", name, address, str(job), str(first), str(end - first)))
            for first, end in itertools.pairwise(shares)
            if end > first
        ]
        payload_bytes = max([sender.hear()["payload_bytes"] for sender in senders])  # which waits for all of them
        coordinator.go()
        coordinator.hear()
        for sender in senders:
            sender.go()
        times = [sender.hear() for sender in senders]
        seconds = max(time["ended"] for time in times) - min(time["began"] for time in times)
        coordinator.go()
        outcome = coordinator.hear()
        if outcome["accepted"] != devices:
            raise SystemExit(f"{devices} updates were sent, {outcome['accepted']} counted")
        return {
            "rss_peak_bytes": outcome["rss_peak_bytes"],
            "updates_per_s": devices / seconds,
            "payload_bytes": payload_bytes,
            "processor_s": {
                "coordinator": outcome["processor_s"] / devices,
                "sender": sum(time["processor_s"] for time in times) / devices,
            },
        }


def make_certificate(folder: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(folder / KEY), "-out", str(folder / CERTIFICATE)]
    subprocess.run(command, check=True, capture_output=True)


def measure_fold(model: str, codec: str, count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.json"
        job.write_text(json.dumps(describe_job(model, codec, 1)))
        with End("fold", str(job), str(count)) as end:
            outcome = end.hear()
            return {"updates_per_s": outcome["updates_per_s"], "processor_s": outcome["processor_s"] / count}


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw the coordinator's memory and its speed, a bar for each number of devices."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    memory = {devices: peak / 2**20 for devices, peak in result["rss_peak_bytes_by_devices"].items()}
    speed = result["updates_per_s_by_devices"]
    alone = {"folding alone": result["fold_only_updates_per_s"]}
    panels = [("peak memory of the coordinator, MiB", memory), ("updates a second", {**speed, **alone})]
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, values) in zip(figure.subplots(1, 2), panels, strict=True):
        bars = axes.bar([name if name in alone else f"{name} devices" for name in values], list(values.values()))
        axes.bar_label(bars, [f"{value:.4g}" for value in values.values()], padding=2)
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{result['model']}, all devices send at once over TLS", fontsize=10)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="binarynet", help="a network of the zoo (default: binarynet)")
    parser.add_argument("--devices", default="10,200", metavar="N,N", help="that send at once (default: 10,200)")
    parser.add_argument("--codec", default="sign", help="of the updates (default: sign)")
    parser.add_argument("--folds", type=int, default=200, help="updates folded alone (default: 200)")
    parser.add_argument("--json", metavar="PATH", help="write the result here; - = standard output")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw memory and speed by devices")
    args = parser.parse_args()
    check_destination(args.json, "--json")
    runs = {}
    for devices in (int(number) for number in args.devices.split(",")):
        runs[str(devices)] = run = measure(args.model, args.codec, devices)
        print(
            f"{devices} devices: {format_bytes(run['rss_peak_bytes'])} at its peak, "
            f"{run['updates_per_s']:.1f} updates of {format_bytes(run['payload_bytes'])} a second; "
            f"processor time of each: {1e3 * run['processor_s']['coordinator']:.1f} ms in the coordinator, "
            f"{1e3 * run['processor_s']['sender']:.1f} ms in its sender",
            file=sys.stderr,
        )
    alone = measure_fold(args.model, args.codec, args.folds)
    print(
        f"decoding and folding alone: {alone['updates_per_s']:.1f} updates a second, "
        f"{1e3 * alone['processor_s']:.1f} ms of processor time each",
        file=sys.stderr,
    )
    most = max(runs, key=int)
    result = {
        "model": args.model,
        "weights": build(args.model).num_binary_weights,
        "codec": args.codec,
        "tls": True,
        "durable": True,
        "payload_bytes": runs[most]["payload_bytes"],
        "rss_peak_bytes_by_devices": {devices: run["rss_peak_bytes"] for devices, run in runs.items()},
        "updates_per_s": runs[most]["updates_per_s"],
        "updates_per_s_by_devices": {devices: run["updates_per_s"] for devices, run in runs.items()},
        "fold_only_updates_per_s": alone["updates_per_s"],
        "processor_s_per_update": {**runs[most]["processor_s"], "fold_only": alone["processor_s"]},
    }
    write_json(result, args.json)
    if args.plot:
        plot(result, args.plot)


if __name__ == "__main__":
    main()

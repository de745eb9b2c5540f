"""One run of four devices on either side: the same network, shards and steps, each in its own program."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.flower.account import Run, fleet_rounds, flower_rounds
from benchmarks.flower.processes import FleetServer, FlowerServer, Processes
from benchmarks.flower.wire import CountingProxy, free_port
from bnncore.data import open_dataset, write_idx
from server.demo.memory import PeakSampler
from server.demo.scenario import write_shards

SAMPLING_S = 0.2
TIMEOUT_S = 360.0


def write_data(root: Path, data: Path | None, devices: int) -> tuple[list[Path], Path]:
    """Split MNIST's training set over folders, and lay its test set beside them."""
    folders = [root / f"shard-{number}" for number in range(devices)]
    with open_dataset("mnist", data, split="train") as dataset:
        write_shards(dataset, folders)
    held_out = root / "held-out"
    with open_dataset("mnist", data, split="test") as dataset:
        samples = np.empty((len(dataset.labels), dataset.rows.row_bytes), np.uint8)
        dataset.read(np.arange(len(dataset.labels), dtype=np.uint32), samples)
        shaped = samples.reshape(-1, *dataset.input_shape)
        write_idx(held_out, shaped, dataset.labels, "test", classes=dataset.classes)
    return folders, held_out


def describe_job(
    model: str, input_shape: list[int], devices: int, rounds: int, steps: int, batch: int
) -> dict[str, Any]:
    """Write the job of bitfleet's side."""
    return {
        "name": "beside-flower",
        "model": {"zoo": model},
        "classes": [str(number) for number in range(10)],
        "input_shape": input_shape,
        "rounds": rounds,
        "min_devices": devices,
        "quorum": devices,
        "deadline_s": TIMEOUT_S,
        "local_steps": steps,
        "batch_size": batch,
        "recipe": "onebit",
    }


def run_flower(venv: Path, shards: list[Path], held_out: Path, rounds: int, steps: int, batch: int) -> Run:
    """Play the rounds with Flower: a SuperLink, and a SuperNode a device."""
    with tempfile.TemporaryDirectory(prefix="bitfleet-flower-") as name, ExitStack() as stack:
        root = Path(name)
        processes = stack.enter_context(Processes(root))
        server = FlowerServer(processes, venv)
        proxies = [stack.enter_context(CountingProxy("127.0.0.1", server.port)) for _ in shards]
        nodes = {}
        for number, (shard, proxy) in enumerate(zip(shards, proxies, strict=True)):
            where = ["--insecure", "--superlink", proxy.address, "--port", str(free_port())]
            config = f'data="{shard}"'
            nodes[str(number)] = server.start(f"node-{number}", "flower-supernode", *where, "--node-config", config).pid
        sampler = stack.enter_context(PeakSampler(nodes, SAMPLING_S))
        report = root / "report.json"
        server.run(
            devices=len(shards),
            rounds=rounds,
            local_steps=steps,
            batch_size=batch,
            report=str(report),
            test_data=str(held_out),
        )
        outcome = server.wait_for_report(report, TIMEOUT_S)
        return _run("flower", flower_rounds(outcome), proxies, sampler, outcome["accuracy"])


def run_fleet(shards: list[Path], held_out: Path, rounds: int, steps: int, batch: int) -> Run:
    """Play the rounds with ``bitfleet-server serve`` and a ``bitfleet-client run`` a device."""
    job = describe_job("mlp", [28, 28], len(shards), rounds, steps, batch)
    job["evaluation"] = {"dataset": "idx", "data": str(held_out)}
    with tempfile.TemporaryDirectory(prefix="bitfleet-beside-") as name, ExitStack() as stack:
        root = Path(name)
        processes = stack.enter_context(Processes(root))
        server = FleetServer(processes, job)
        host, _, port = server.address.rpartition(":")
        proxies = [stack.enter_context(CountingProxy(host, int(port))) for _ in shards]
        nodes = {}
        for number, (shard, proxy) in enumerate(zip(shards, proxies, strict=True)):
            words = [
                "-m",
                "edge_client",
                "run",
                "--insecure",
                "--server",
                proxy.address,
                "--data",
                str(shard),
                "--dataset",
                "idx",
            ]
            words += ["--device-id", f"device-{number}", "--state", str(root / f"state-{number}")]
            nodes[str(number)] = processes.start(f"device-{number}", words).pid
        sampler = stack.enter_context(PeakSampler(nodes, SAMPLING_S))
        outcome, rows = server.wait_until_completed(TIMEOUT_S)
        return _run("bitfleet", fleet_rounds(rows, rounds), proxies, sampler, outcome["accuracy"])


def _run(side: str, rounds: Any, proxies: list[CountingProxy], sampler: PeakSampler, accuracy: float) -> Run:
    return Run(
        side,
        rounds,
        down_bytes=tuple(proxy.down_bytes for proxy in proxies),
        up_bytes=tuple(proxy.up_bytes for proxy in proxies),
        device_pss_peak_bytes=tuple(sampler.peaks.values()),
        accuracy=accuracy,
    )

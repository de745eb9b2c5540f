"""What a coordinator takes for rounds of many devices with a large network; the devices only send."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.flower.fleets import SAMPLING_S, describe_job
from benchmarks.flower.processes import FleetServer, FlowerServer, Processes
from bnncore.zoo import build
from server.demo.memory import PeakSampler

NODES = Path(__file__).with_name("virtual_nodes.py")
TIMEOUT_S = 1800.0


def trainable_shapes(model: str) -> list[list[int]]:
    """List the shapes that a float32 network of the same layers sends: weights, and four vectors a batch norm."""
    shapes: list[list[int]] = []
    for tensor in build(model).tensors:
        if tensor.role == "weight":
            shapes += [list(tensor.shape), *([[tensor.shape[0]]] * 4)]
    return shapes


def serve_flower(venv: Path, model: str, devices: int, rounds: int) -> dict[str, Any]:
    """Play rounds with Flower's server, SuperLink, SuperExec and the server's app."""
    with tempfile.TemporaryDirectory(prefix="bitfleet-flower-") as name, ExitStack() as stack:
        root = Path(name)
        processes = stack.enter_context(Processes(root))
        server = FlowerServer(processes, venv)
        shapes = json.dumps(trainable_shapes(model), separators=(",", ":"))
        words = [str(NODES), f"127.0.0.1:{server.port}", str(devices), shapes]
        sampler = stack.enter_context(PeakSampler({"server": server.process.pid}, SAMPLING_S))
        began = time.monotonic()
        processes.start("nodes", words, python=server.python, variables=server.variables)
        report = root / "report.json"
        server.run(devices=devices, rounds=rounds, shapes=shapes, report=str(report))
        server.wait_for_report(report, TIMEOUT_S)
        return {"devices": devices, "pss_peak_bytes": sampler.peaks["server"], "seconds": time.monotonic() - began}


def serve_fleet(model: str, devices: int, rounds: int) -> dict[str, Any]:
    """Play rounds with ``bitfleet-server serve``."""
    spec = build(model)
    job = describe_job(model, list(spec.input_shape), devices, rounds, 1, 1)
    with tempfile.TemporaryDirectory(prefix="bitfleet-beside-") as name, ExitStack() as stack:
        root = Path(name)
        processes = stack.enter_context(Processes(root))
        server = FleetServer(processes, job)
        sampler = stack.enter_context(PeakSampler({"server": server.process.pid}, SAMPLING_S))
        began = time.monotonic()
        words = ["-m", "benchmarks.flower.virtual_devices", server.address, str(devices), str(root / "job.json")]
        here = str(Path(__file__).parents[2])
        processes.start("devices", words, python=sys.executable, variables={"PYTHONPATH": here})
        server.wait_until_committed(rounds, TIMEOUT_S)
        return {"devices": devices, "pss_peak_bytes": sampler.peaks["server"], "seconds": time.monotonic() - began}

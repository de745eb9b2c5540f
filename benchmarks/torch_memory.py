"""A training step of bnncore.nn beside the same network in plain PyTorch: bytes kept, peak memory, time.

Each side is a process of its own, which first trains a small network of the same layers, so that libraries and
compiled kernels are there; then it trains the network in question. Steps of all sides alternate. Run it with

    python -m benchmarks.torch_memory --json build/torch-memory.json
    python -m benchmarks.torch_memory --model resnete18 --batch-size 32 --json build/torch-memory-resnete18.json

==================  ===================================================================================================
plain               Algorithm 1 in PyTorch (``bnncore.nn.standard``, ``standard_residual``): conv2d, max_pool2d,
                    batch_norm, sign with mask
nn                  ``bnncore.nn``, the same loop
nn, in backward     and weights updated in the backward pass (``update_in_backward``)
nn, 16-bit          and under ``torch.autocast`` with bfloat16, in which gradients then travel between blocks
==================  ===================================================================================================

kept: what autograd keeps of activations (``saved_tensors_hooks``), parameters left out. allocated: the largest sum of
what PyTorch's allocator had handed out in a step (its profiler's account), weights and optimizer state included.
resident: peak resident size in a step over that before the network was built. Adam is float32 and fused on all sides.
All sides run with glibc's MALLOC_MMAP_THRESHOLD_ at its first value, unless the environment says otherwise: left to
itself glibc raises it, and keeps hundreds of MiB of what was freed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bnncore.spec import ModelSpec
from bnncore.zoo import build

MIB = 1 << 20
SIDES = ("plain", "nn", "nn, in backward", "nn, 16-bit")
SMALL: dict[str, dict[str, Any]] = {
    "binarynet": {"widths": (16, 16, 16), "dense_widths": (16,)},
    "cnv": {"widths": (16, 16, 16), "dense_widths": (16,)},
    "resnete18": {"input_shape": (64, 64, 3), "widths": (16, 16), "classes": 10},
    "bireal18": {"input_shape": (64, 64, 3), "widths": (16, 16), "classes": 10},
}
STEP_SIZE = 1e-3
MMAP_THRESHOLD = str(128 << 10)
"""Of glibc: what is larger is given back as soon as it is freed."""


class Side:
    """One side: its network, and its step on one fixed batch."""

    def __init__(self, name: str, spec: ModelSpec, batch_size: int) -> None:
        import torch

        from bnncore.nn import convert, update_in_backward
        from bnncore.nn.standard_residual import standard_network

        torch.manual_seed(0)
        self.torch, self.name = torch, name
        self.network: Any = standard_network(spec) if name == "plain" else convert.network(spec)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=STEP_SIZE, fused=True)
        if name in SIDES[2:]:
            update_in_backward(self.optimizer)
        samples = torch.randint(0, 256, (batch_size, spec.input_features), dtype=torch.uint8)
        self.x = convert.to_input(spec, samples.numpy())
        self.labels = torch.arange(batch_size) % spec.classes

    def loss(self) -> Any:
        with self.torch.autocast("cpu", dtype=self.torch.bfloat16, enabled=self.name == "nn, 16-bit"):
            logits = self.network(self.x)
        return self.torch.nn.functional.cross_entropy(logits.float(), self.labels)

    def step(self) -> None:
        self.loss().backward()
        if self.name in SIDES[:2]:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        if self.name == "plain":  # the layers of bnncore.nn clip by themselves
            self.network.clip_weights()

    def kept_bytes(self) -> int:
        """Bytes that autograd keeps of activations, each memory once."""
        kept: dict[int, int] = {}
        parameters = {parameter.data_ptr() for parameter in self.network.parameters()}

        def note(tensor: Any) -> Any:
            if tensor.data_ptr() not in parameters:
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with self.torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            self.loss()
        return sum(kept.values())

    def persistent_bytes(self) -> int:
        """Bytes of weights, statistics and the optimizer's state."""
        tensors = [*self.network.parameters(), *self.network.buffers()]
        tensors += [t for state in self.optimizer.state.values() for t in state.values() if self.torch.is_tensor(t)]
        return sum(tensor.nbytes for tensor in tensors)

    def allocated_bytes(self) -> int:
        """Largest sum of what a step asks PyTorch's allocator for, beside what is there already."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            self.step()
        events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
        now = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            now += event.nbytes()
            peak = max(peak, now)
        return peak


def serve(name: str, model: str, batch_size: int, threads: int) -> None:
    """Be one side: answer each line on standard input with one of JSON."""
    import torch

    torch.set_num_threads(threads)
    small = Side(name, build(model, **SMALL[model]), 4)
    for _ in range(2):
        small.step()
    small.allocated_bytes()
    before = _status("VmRSS")
    side = Side(name, build(model), batch_size)
    side.step()
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        answer: dict[str, Any]
        start = time.process_time()
        if line.strip() == "step":
            side.step()
            answer = {"seconds": time.process_time() - start}
        else:
            Path("/proc/self/clear_refs").write_text("5")
            side.step()
            resident = _status("VmHWM") - before
            persistent = side.persistent_bytes()
            answer = {
                "kept_bytes": side.kept_bytes(),
                "persistent_bytes": persistent,
                "allocated_bytes": persistent + side.allocated_bytes(),
                "resident_bytes": resident,
            }
        print(json.dumps(answer), flush=True)


def _status(key: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def _start(name: str, options: argparse.Namespace) -> tuple[subprocess.Popen[str], Callable[[str], dict[str, Any]]]:
    command = [sys.executable, "-m", "benchmarks.torch_memory", "--side", name, "--model", options.model]
    command += ["--batch-size", str(options.batch_size), "--threads", str(options.threads)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={"MALLOC_MMAP_THRESHOLD_": MMAP_THRESHOLD, **os.environ},
    )
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None

    def ask(request: str) -> dict[str, Any]:
        stdin.write(request + "\n")
        stdin.flush()
        answer: dict[str, Any] = json.loads(stdout.readline())
        return answer

    json.loads(stdout.readline())
    return process, ask


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all sides; give a row for each."""
    started = {name: _start(name, options) for name in SIDES if name in options.sides}
    try:
        rows = [{"side": name, **ask("memory")} for name, (_, ask) in started.items()]
        rounds = [{name: ask("step")["seconds"] for name, (_, ask) in started.items()} for _ in range(options.rounds)]
    finally:
        for process, _ in started.values():
            process.kill()
            process.wait()
    for row in rows:
        row["step_cpu_seconds"] = statistics.median(times[row["side"]] for times in rounds)
        row["time_ratio"] = statistics.median(times[row["side"]] / times["plain"] for times in rounds)
        for key in ("kept", "allocated", "resident"):
            row[f"{key}_ratio"] = rows[0][f"{key}_bytes"] / row[f"{key}_bytes"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="binarynet", choices=list(SMALL))
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES, help="always with plain, the first")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        serve(options.side, options.model, options.batch_size, options.threads)
        return
    options.sides = ["plain", *options.sides]
    rows = compare(options)
    print(f"{'':<17}{'kept':>15}{'allocated':>17}{'resident':>17}{'CPU s a step':>19}")
    for row in rows:
        sizes = [
            f"{row[f'{key}_bytes'] / MIB:.1f} ({row[f'{key}_ratio']:.2f}x)" for key in ("kept", "allocated", "resident")
        ]
        print(f"{row['side']:<17}{sizes[0]:>15}{sizes[1]:>17}{sizes[2]:>17}", end="")
        print(f"{row['step_cpu_seconds']:>11.2f} ({row['time_ratio']:.2f})")
    if options.json:
        about = {"model": options.model, "batch_size": options.batch_size, "threads": options.threads}
        options.json.write_text(json.dumps({**about, "sides": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

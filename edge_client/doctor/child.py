"""The child of the doctor: ``python -m edge_client.doctor.child data|engine``; prints one event.

A process of its own: its memory goes with it, and a processor that lacks an instruction kills it alone.
"""

from __future__ import annotations

import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import bnncore
from bnncore.bench.counting import count_step
from bnncore.data import open_dataset, survey_data
from bnncore.engine import Engine, isa_available, isa_selected
from bnncore.errors import BitfleetError
from bnncore.federated.memory import task_memory
from bnncore.optimizer import resolve_preset
from bnncore.spec import ModelSpec
from bnncore.zoo import ZOO
from edge_client.child import EventWriter, bind_to_parent, child_parser

__all__ = ["main"]

MEASURED = ("mlp", "cnv")
"""Networks whose steps are measured: dense layers and convolutions. Of the others the time is worked out."""

_SECONDS_EACH = 2.0
_BATCH = 20


def look_at_data(name: str | None, root: Path | None) -> dict[str, Any]:
    """Describe the training split, and read all of it once: what is broken is found here, not in the first round."""
    survey = survey_data(name, root)
    facts = {
        "name": survey.name,
        "classes": list(survey.classes),
        "input_shape": list(survey.input_shape),
        "num_examples": survey.num_examples,
        "any_image_shape": survey.any_image_shape,
        "needs_input_range": survey.needs_input_range,
        "counts": None,
        "broken": 0,
        "reasons": [],
    }
    if survey.needs_input_range:
        return facts
    with open_dataset(name, root, split="train") as dataset:
        counts = np.bincount(dataset.labels, minlength=len(dataset.classes))
        facts["counts"] = dict(zip(dataset.classes, counts.tolist(), strict=True))
        facts["broken"], facts["reasons"] = dataset.broken.count, list(dataset.broken.reasons)
    return facts


def measure_engine(threads: int) -> dict[str, Any]:
    """Train on noise for a few seconds, and say of each network of the zoo what a step takes."""
    preset = resolve_preset("bitfleet", None)
    measured = {name: _seconds_a_step(ZOO[name](), threads) for name in MEASURED}
    networks = {}
    for name, build in ZOO.items():
        spec = build()
        like = name if name in MEASURED else "cnv"
        products = _products(spec) / _products(ZOO[like]())  # 0 of a residual network, whose work is not counted
        parts = task_memory(
            spec, preset=preset.name, optimizer=None, batch_size=_BATCH, threads=threads, up_codec="sign",
            down_codec="flips",
        )  # fmt: skip
        networks[name] = {
            "weights": spec.num_binary_weights,
            "memory_bytes": sum(parts.values()),
            "step_seconds": measured[like] * products or None,
            "is_measured": name in MEASURED,
        }
    return {
        "isa": isa_selected(),
        "isa_available": isa_available(),
        "machine": platform.machine(),
        "version": bnncore.__version__,
        "batch_size": _BATCH,
        "threads": threads,
        "networks": networks,
    }


def _products(spec: ModelSpec) -> int:
    work = count_step(spec, _BATCH, resolve_preset("bitfleet", None))
    return sum(phase.total_macs for phase in work.values())


def _seconds_a_step(spec: ModelSpec, threads: int) -> float:
    """Median over as many steps as fit in a few seconds, one at least."""
    engine = Engine(spec, batch_size=_BATCH, preset=resolve_preset("bitfleet", None), seed=0, threads=threads)
    engine.initialise(0)
    random = np.random.default_rng(0)
    engine.input[:] = random.integers(0, 256, engine.input.shape, dtype=np.uint8)
    engine.labels[:] = np.arange(_BATCH) % spec.classes
    until = time.monotonic() + _SECONDS_EACH
    times: list[float] = []
    while not times or time.monotonic() < until:
        began = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def main(argv: list[str] | None = None) -> int:
    """Print the answer, or the error."""
    parser = child_parser("edge_client.doctor.child", __doc__)
    parser.add_argument("task", choices=["data", "engine"])
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--dataset", default=None)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args(argv)
    bind_to_parent(arguments.parent)
    events = EventWriter()
    try:
        if arguments.task == "data":
            event = look_at_data(arguments.dataset, arguments.data)
        else:
            event = measure_engine(arguments.threads)
    except BitfleetError as error:
        event = {"error": str(error)}
    events.write(event)
    return 0


if __name__ == "__main__":
    sys.exit(main())

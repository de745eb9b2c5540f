"""Two sides in one run: their blocks of steps alternate, so that whatever else the machine does meets both alike.

Of each pair of blocks the ratio of the median step times is taken; the speed-up is the median of these ratios. Each
side is a process of its own, and only one of them works at a time.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from bnncore.bench.counting import count_layers, count_step
from bnncore.bench.phases import Achieved
from bnncore.bench.process import Worker
from bnncore.bench.trial import Trial, try_variants
from bnncore.energy.model import SOURCE, modelled_energy
from bnncore.energy.rapl import Rapl, open_rapl
from bnncore.optimizer import Preset, resolve_preset
from bnncore.spec import ModelSpec

__all__ = ["AGAINST", "Settings", "compare", "percentile"]

AGAINST = ("torch", "standard", "paper")
"""What it can be compared with: PyTorch, or this engine under another preset."""

_BLOCK_S = 0.1
_MOST_STEPS = 200
_ALL_BLOCKS_S = 10.0
_FEWEST_ROUNDS, _MOST_ROUNDS = 9, 99
_WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
      spec: the network.
      preset: of this engine's side.
      batch_size: samples a step, both sides.
      threads: of each side.
      against: one of ``AGAINST``, or None to measure one side alone.
      rounds: blocks of each side; None: ten seconds of them, at least 9 and at most 99.
      steps: steps a block; None: as many as take about a tenth of a second.
      keep_products: whether this engine's side keeps the products of dense layers.
      seed: of samples and weights.
    """

    spec: ModelSpec
    preset: Preset
    batch_size: int = 100
    threads: int = 1
    against: str | None = None
    rounds: int | None = None
    steps: int | None = None
    keep_products: bool = False
    seed: int = 0

    def engine_side(self, preset: Preset) -> dict[str, Any]:
        """Describe a side of this engine to a worker."""
        keeps = self.keep_products and preset == self.preset
        chosen = {"preset": preset.name, "optimizer": preset.optimizer.name, "keep_products": keeps}
        return {**self._side("engine"), **chosen}

    def torch_side(self, variant: str) -> dict[str, Any]:
        """Describe a side of PyTorch to a worker."""
        return {**self._side("torch"), "variant": variant}

    def _side(self, kind: str) -> dict[str, Any]:
        sizes = {"batch_size": self.batch_size, "threads": self.threads, "seed": self.seed}
        return {"kind": kind, "spec": self.spec.to_json(), **sizes}


@dataclass
class _Timing:
    """What one side's blocks gave."""

    worker: Worker
    steps: int = 1
    step_ms: list[float] = field(default_factory=list)
    blocks: list[float] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)
    layers: list[dict[str, float]] = field(default_factory=list)
    processor_ms: float = 0.0
    joules: float = 0.0

    def warm_up(self, steps: int | None) -> float:
        """Do the first steps, which are slower, and choose how many a block has; give the seconds it will take."""
        step_s: float = self.worker.ask("run", steps=_WARM_UP_STEPS)["step_ms"][-1] / 1e3
        self.steps = steps or max(1, min(_MOST_STEPS, round(_BLOCK_S / step_s)))
        return self.steps * step_s

    def run_block(self, rapl: Rapl | None) -> None:
        """Time one block."""
        before = rapl.read() if rapl else []
        answer = self.worker.ask("run", steps=self.steps)
        if rapl:
            self.joules += rapl.joules(before, rapl.read())
        self.step_ms += answer["step_ms"]
        self.processor_ms += answer["processor_ms"]
        self.blocks.append(statistics.median(answer["step_ms"]))
        for name, seconds in answer["phases"].items():
            self.phases[name] = self.phases.get(name, 0.0) + seconds
        before_it = self.layers or [dict.fromkeys(layer, 0.0) for layer in answer["layers"]]
        self.layers = [
            {name: total[name] + layer[name] for name in layer}
            for total, layer in zip(before_it, answer["layers"], strict=True)
        ]

    def report(self) -> dict[str, Any]:
        """The side as JSON values."""
        return {
            "step_ms_median": statistics.median(self.step_ms),
            "step_ms_p10": percentile(self.step_ms, 10),
            "step_ms_p90": percentile(self.step_ms, 90),
            "processor_ms_mean": self.processor_ms / len(self.step_ms),  # of all threads, waiting left out
            "steps": len(self.step_ms),
            **self.worker.ask("memory"),
            **self.worker.about,
        }


def percentile(values: Sequence[float], percent: float) -> float:
    """Interpolate between the two nearest of the sorted values."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def compare(settings: Settings, on_progress: Callable[[str, int, int], None] | None = None) -> dict[str, Any]:
    """Measure a step of this engine, and of what it is compared with.

    Args:
      settings: what to measure.
      on_progress: told what is going on, and how many rounds of how many are done (of 0 while it is not known yet).

    Returns:
      JSON values: ``bitfleet`` and the other side, each with step times, memory, and what it is; ``speedup`` and
      ``memory_ratio``, other side / this engine; ``energy``, whose ``modelled`` is None where work is
      not counted; ``machine``; and what the figures belong to.

    Raises:
      ConfigurationError: PyTorch is not installed, or a size is out of range.
      WorkerFailed: a side ended early.
    """
    tell = on_progress or (lambda doing, done, total: None)
    load = os.getloadavg()[0]
    trial = None
    if settings.against == "torch":
        trial = try_variants(settings, lambda name: tell(f"trying torch, {name}", 0, 0))
    rapl, energy_source = open_rapl()
    clocks = []
    with ExitStack() as stack:
        tell("warming up", 0, 0)
        sides = {"bitfleet": _Timing(stack.enter_context(Worker("bitfleet", settings.engine_side(settings.preset))))}
        if settings.against:
            sides[settings.against] = _Timing(stack.enter_context(_other_worker(settings, trial)))
        seconds = sum([side.warm_up(settings.steps) for side in sides.values()])
        rounds = settings.rounds or max(_FEWEST_ROUNDS, min(_MOST_ROUNDS, round(_ALL_BLOCKS_S / seconds)))
        engine = sides["bitfleet"].worker
        for number in range(rounds):
            tell("measuring", number, rounds)
            order = list(sides.values())
            for side in order if number % 2 == 0 else reversed(order):
                side.run_block(rapl)
            clocks.append(engine.ask("clock")["clock_hz"])
        tell("measuring", rounds, rounds)
        reports = {name: side.report() for name, side in sides.items()}
        machine = {"clock_hz": statistics.median(clocks), **engine.ask("copy")}
    machine |= {"cpus": len(os.sched_getaffinity(0)), "load_average_before": load}
    return _gather(settings, sides, reports, machine, trial, energy_source if rapl is None else None, energy_source)


def _other_worker(settings: Settings, trial: Trial | None) -> Worker:
    if trial is not None:
        return Worker(f"torch ({trial.fastest})", settings.torch_side(trial.fastest))
    assert settings.against is not None
    return Worker(settings.against, settings.engine_side(resolve_preset(settings.against)))


def _gather(
    settings: Settings,
    sides: dict[str, _Timing],
    reports: dict[str, dict[str, Any]],
    machine: dict[str, Any],
    trial: Trial | None,
    no_energy: str | None,
    energy_source: str,
) -> dict[str, Any]:
    ours, preset = reports["bitfleet"], settings.preset
    isa = ours.pop("isa")
    work = count_step(settings.spec, settings.batch_size, preset, keep_products=settings.keep_products)
    achieved = Achieved(steps=ours["steps"], isa=isa, clock_hz=machine["clock_hz"], threads=settings.threads)
    ours["phases"] = achieved.phases(work, sides["bitfleet"].phases)
    layers = count_layers(settings.spec, settings.batch_size, preset, keep_products=settings.keep_products)
    ours |= achieved.layers(settings.spec, layers, sides["bitfleet"].layers)
    result: dict[str, Any] = {
        "model": settings.spec.name,
        "batch_size": settings.batch_size,
        "threads": settings.threads,
        "preset": preset.name,
        "optimizer": preset.optimizer.name,
        "preset_digest": preset.digest,
        "keep_products": settings.keep_products,
        "isa": isa,
        "rounds": len(sides["bitfleet"].blocks),
        "machine": machine,
        "bitfleet": ours,
    }
    modelled = {"bitfleet": modelled_energy(work)}
    if settings.against:
        other = reports[settings.against]
        other.pop("isa", None)
        least = other["peak_bytes"]
        if trial is not None:
            other["variants"] = trial.report
            least = min([least, *trial.peaks])
        result[settings.against] = other
        ratios = [b / a for a, b in zip(sides["bitfleet"].blocks, sides[settings.against].blocks, strict=True)]
        result |= {
            "against": settings.against,
            "speedup": statistics.median(ratios),
            "speedup_p10": percentile(ratios, 10),
            "speedup_p90": percentile(ratios, 90),
            "ratios": ratios,
            "memory_ratio": least / max(1, ours["peak_bytes"]),
            "process_memory_ratio": other["process_peak_bytes"] / max(1, ours["process_peak_bytes"]),
        }
        theirs = resolve_preset("standard" if settings.against == "torch" else settings.against)
        modelled[settings.against] = modelled_energy(count_step(settings.spec, settings.batch_size, theirs))
    result["energy"] = {
        "modelled": {**modelled, "source": SOURCE} if work else None,
        "measured": None
        if no_energy
        else {name: side.joules / max(1, reports[name]["steps"]) for name, side in sides.items()},
        "measured_by": energy_source,
    }
    return result

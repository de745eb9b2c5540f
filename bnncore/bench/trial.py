"""Which of PyTorch's ways is the fastest for this network on this machine, found by trying each for about a second."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bnncore.bench.process import Worker, WorkerFailed
from bnncore.nn import variants_for

if TYPE_CHECKING:
    from bnncore.bench.compare import Settings

__all__ = ["Trial", "try_variants"]

_BLOCK_S = 0.1
_ALL_BLOCKS_S = 1.0
_FEWEST_ROUNDS = 3
_MOST_STEPS = 100
_WARM_UP_STEPS = 2


@dataclass
class Trial:
    """What trying gave.

    Attributes:
      fastest: the variant to measure.
      report: by variant, its fastest step and its peak memory, or why it was left out.
      peaks: memory of those that ran.
    """

    fastest: str = ""
    report: dict[str, Any] = field(default_factory=dict)
    peaks: list[int] = field(default_factory=list)


@dataclass
class _Candidate:
    worker: Worker
    step_s: float
    steps: int
    fastest_ms: float = float("inf")


def try_variants(settings: Settings, on_variant: Callable[[str], None]) -> Trial:
    """Run every variant for a few blocks of steps, in turns, each in a process of its own.

    A variant's fastest step decides: it is what other programs disturbed least.

    Raises:
      ConfigurationError: PyTorch is not installed.
      WorkerFailed: no variant runs.
    """
    trial = Trial()
    failures: list[WorkerFailed] = []
    candidates: dict[str, _Candidate] = {}

    def leave_out(name: str, error: WorkerFailed) -> None:
        candidates.pop(name, None)
        trial.report[name] = {"left_out": str(error)}
        failures.append(error)

    with ExitStack() as stack:
        for variant in variants_for(settings.spec):
            on_variant(variant.name)
            trial.report[variant.name] = {}  # in this order, whatever becomes of it
            try:
                worker = stack.enter_context(Worker(f"torch ({variant.name})", settings.torch_side(variant.name)))
                step_s = worker.ask("run", steps=_WARM_UP_STEPS)["step_ms"][-1] / 1e3
                steps = max(1, min(_MOST_STEPS, round(_BLOCK_S / step_s)))
                candidates[variant.name] = _Candidate(worker, step_s, steps)
            except WorkerFailed as error:
                leave_out(variant.name, error)
        slowest_s = max((candidate.steps * candidate.step_s for candidate in candidates.values()), default=1.0)
        for number in range(max(_FEWEST_ROUNDS, round(_ALL_BLOCKS_S / slowest_s))):
            names = list(candidates)
            for name in names if number % 2 == 0 else reversed(names):
                on_variant(name)
                candidate = candidates[name]
                try:
                    step_ms = candidate.worker.ask("run", steps=candidate.steps)["step_ms"]
                except WorkerFailed as error:
                    leave_out(name, error)
                    continue
                candidate.fastest_ms = min(candidate.fastest_ms, *step_ms)
        for name, candidate in candidates.items():
            peak = candidate.worker.ask("memory")["peak_bytes"]
            trial.report[name] = {"step_ms_min": candidate.fastest_ms, "peak_bytes": peak}
            trial.peaks.append(peak)
    if not candidates:
        raise failures[-1]
    trial.fastest = min(candidates, key=lambda name: candidates[name].fastest_ms)
    return trial

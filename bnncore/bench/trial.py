"""Which of PyTorch's ways is the fastest for this network on this machine, found by trying each for a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bnncore.bench.process import Worker, WorkerFailed
from bnncore.nn import variants_for

if TYPE_CHECKING:
    from bnncore.bench.compare import Settings

__all__ = ["Trial", "try_variants"]

_TRIAL_S = 1.0
_FEWEST_STEPS, _MOST_STEPS = 3, 100
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


def try_variants(settings: Settings, on_variant: Callable[[str], None]) -> Trial:
    """Run every variant for a few steps, each in a process of its own.

    A variant's fastest step decides: it is what other programs disturbed least.

    Raises:
      ConfigurationError: PyTorch is not installed.
      WorkerFailed: no variant runs.
    """
    trial = Trial()
    best = float("inf")
    failure: WorkerFailed | None = None
    for variant in variants_for(settings.spec):
        on_variant(variant.name)
        try:
            with Worker(f"torch ({variant.name})", settings.torch_side(variant.name)) as worker:
                warm = worker.ask("run", steps=_WARM_UP_STEPS)["step_ms"][-1]
                steps = max(_FEWEST_STEPS, min(_MOST_STEPS, round(_TRIAL_S * 1e3 / warm)))
                fastest = min(worker.ask("run", steps=steps)["step_ms"])
                peak = worker.ask("memory")["peak_bytes"]
        except WorkerFailed as error:
            trial.report[variant.name] = {"left_out": str(error)}
            failure = error
            continue
        trial.report[variant.name] = {"step_ms_min": fastest, "peak_bytes": peak}
        trial.peaks.append(peak)
        if fastest < best:
            best, trial.fastest = fastest, variant.name
    if not trial.fastest and failure is not None:
        raise failure
    return trial

"""A worker: a process that trains one side of a comparison and is told what to do in JSON lines.

    python -m bnncore.bench.worker

The first line of standard input describes the side (``bnncore.bench.sides.make_side``); every further one is a request:

=========================================  =====================================================================
``{"do": "run", "steps": N}``              ``{"step_ms": [...], "processor_ms": of all, "loss": of the last, "phases":
                                           {name: seconds}, "layers": [{name: seconds}, ...]}``
``{"do": "memory"}``                       peak and earlier resident bytes
``{"do": "clock"}``                        ``{"clock_hz": ...}``, at the moment
``{"do": "copy"}``                         ``{"copy_bytes_per_s": ...}``: memory to memory, bytes read and written
=========================================  =====================================================================

Each is answered by one line on standard output. A mistake of the user's is answered by ``{"error": ..., "exit_code":
...}``, and the worker ends. It also ends when its standard input does, so it never outlives the one who asks.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

from bnncore.errors import BitfleetError, ConfigurationError

__all__ = ["main"]

_NUM_BATCHES = 4
"""Different ones, so that no side trains on what its caches still hold."""
_COPY_BYTES = 64 << 20
"""More than caches hold."""


def main() -> int:
    """Serve one parent until it goes away."""
    with _answers() as answers:
        try:
            _serve(answers)
        except BitfleetError as error:
            _answer(answers, {"error": str(error), "exit_code": error.exit_code})
            return error.exit_code
        except (KeyboardInterrupt, BrokenPipeError):  # the parent was interrupted too, or is gone
            return 130
    return 0


def _serve(answers: TextIO) -> None:
    from bnncore.bench.samples import make_batches
    from bnncore.bench.sides import make_side
    from bnncore.cli.output import rss_peak_bytes

    description = json.loads(sys.stdin.readline() or "null")
    if description is None:
        return
    try:
        side = make_side(description)
    except ImportError as error:
        if error.name != "torch":
            raise
        raise ConfigurationError(
            "--against torch needs PyTorch, which is not installed here. Install it: pip install 'bitfleet[torch]'"
        ) from error
    side.take_batches(
        make_batches(side.spec, batch_size=description["batch_size"], count=_NUM_BATCHES, seed=description["seed"])
    )
    _forget_peak()
    before = _resident_bytes()
    side.build()
    _answer(answers, side.describe())
    done = 0
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "run":
            side.reset_phases()
            step_ms = []
            processor = 0.0
            for _ in range(request["steps"]):
                side.load(done % _NUM_BATCHES)
                start, busy = time.perf_counter(), time.process_time()
                loss = side.step()
                step_ms.append((time.perf_counter() - start) * 1e3)
                processor += time.process_time() - busy
                done += 1
            found = {"step_ms": step_ms, "processor_ms": processor * 1e3, "loss": loss}
            _answer(answers, {**found, "phases": side.phase_seconds(), "layers": side.layer_seconds()})
        elif request["do"] == "memory":
            peak = rss_peak_bytes()
            _answer(answers, {"peak_bytes": peak - before, "process_peak_bytes": peak, "before_bytes": before})
        elif request["do"] == "clock":
            from bnncore import _native

            _answer(answers, {"clock_hz": _native.measure_clock_hz()})
        elif request["do"] == "copy":
            _answer(answers, {"copy_bytes_per_s": _copy_rate()})


@contextlib.contextmanager
def _answers() -> Iterator[TextIO]:
    """Keep standard output for answers: what libraries print goes to standard error."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        yield answers


def _answer(answers: TextIO, values: dict[str, Any]) -> None:
    answers.write(json.dumps(values) + "\n")
    answers.flush()


def _forget_peak() -> None:
    """Make VmHWM start anew from what is resident now, where the system lets a process do so."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _copy_rate() -> float:
    import numpy as np

    source, target = np.zeros(_COPY_BYTES, np.uint8), np.ones(_COPY_BYTES, np.uint8)
    fastest = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * _COPY_BYTES / fastest


if __name__ == "__main__":
    sys.exit(main())

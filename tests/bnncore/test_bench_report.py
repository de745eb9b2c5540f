"""The bench's table and picture, of a result made by hand."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from bnncore.bench.plot import plot_bench
from bnncore.bench.report import bench_table

MIB = 1 << 20
SIDE = {"step_ms_p10": 49.0, "step_ms_p90": 52.0, "peak_bytes": 10 * MIB, "process_peak_bytes": 45 * MIB}
RESULT: dict[str, Any] = {
    "model": "cnv",
    "batch_size": 100,
    "threads": 1,
    "preset": "bitfleet",
    "optimizer": "latent8",
    "keep_products": False,
    "isa": "avx512",
    "machine": {"clock_hz": 3.66e9, "copy_bytes_per_s": 20e9, "load_average_before": 0.1},
    "bitfleet": {
        **SIDE,
        "step_ms_median": 50.0,
        "phases": {
            "forward": {"ms": 8.0, "gmacs_per_s": 740.0, "share_of_bound": 0.6, "macs_per_byte": 2000.0},
            "grad_w": {"ms": 20.0, "gmacs_per_s": 297.0, "share_of_bound": None, "macs_per_byte": 400.0},
            "rest": {"ms": 22.0},
        },
        "deep_phases": {"forward": {"ms": 2.0, "gmacs_per_s": 930.0, "share_of_bound": 0.72, "macs_per_byte": 2000.0}},
    },
    "against": "torch",
    "torch": {
        **SIDE,
        "step_ms_median": 400.0,
        "variant": "channels_last",
        "variants": {
            "channels_last": {"step_ms_min": 398.0, "peak_bytes": 300 * MIB},
            "compiled": {"left_out": "the process that runs torch (compiled) ended early (exit code 1): no compiler"},
        },
    },
    "ratios": [7.9, 8.0, 8.1],
    "speedup": 8.0,
    "speedup_p10": 7.92,
    "speedup_p90": 8.08,
    "memory_ratio": 30.0,
    "process_memory_ratio": 12.0,
    "energy": {
        "modelled": {"bitfleet": {"total_j": 0.012}, "torch": {"total_j": 0.175}, "source": "a book"},
        "measured": {"bitfleet": 1.5, "torch": 12.0},
        "measured_by": "RAPL",
    },
}


def test_the_table_says_what_was_found() -> None:
    text = bench_table(RESULT)

    assert "avx512, 1 thread(s) at 3.66 GHz" in text
    assert re.search(r"^forward +8\.000 +740 +60 %$", text, re.M)
    assert re.search(r"^forward, K >= 1024 +2\.000 +930 +72 %$", text, re.M)
    assert re.search(r"^weight gradient +20\.000 +297 *$", text, re.M)
    assert re.search(r"^all else +22\.000 *$", text, re.M)
    assert "8.00 times faster than torch, channels_last (median of 3 pairs; p10 7.92, p90 8.08)" in text
    assert "30 times less memory to train than torch at its leanest (the whole process: 12)" in text
    assert (
        "tried torch, compiled: the process that runs torch (compiled) ended early (exit code 1): no compiler" in text
    )
    assert "modelled (a book): bitfleet 12 mJ, torch 175 mJ; measured (RAPL): bitfleet 1.5e+03 mJ" in text


def test_the_table_says_that_products_were_kept() -> None:
    assert bench_table(RESULT).splitlines()[0].endswith(" GHz")
    assert bench_table({**RESULT, "keep_products": True}).splitlines()[0].endswith(" GHz, products kept")


def test_the_table_does_not_call_slower_faster() -> None:
    slower = copy.deepcopy(RESULT) | {"speedup": 0.8}

    assert "0.80 times as fast as torch, channels_last" in bench_table(slower)


def test_the_table_tells_of_a_busy_machine() -> None:
    busy = RESULT | {"machine": RESULT["machine"] | {"load_average_before": 3.2}}

    assert "the machine was busy before (load average 3.2)" in bench_table(busy)
    assert "busy" not in bench_table(RESULT)


@pytest.mark.parametrize("isa", ["avx512", "avx2", "neon", "portable"])
def test_the_picture_shows_phases_and_roofs(tmp_path: Path, isa: str) -> None:
    picture = tmp_path / "bench.svg"

    plot_bench(RESULT | {"isa": isa}, str(picture))

    drawn = set(re.findall(r"<!-- (.*?) -->", picture.read_text()))
    assert {"forward", "weight gradient", "all else", "50 ms", "8.00 times faster", "400 ms"} <= drawn
    assert {"forward: 740", "weight gradient: 297", "memory: 20 GB/s"} <= drawn
    roofs = {line for line in drawn if line.startswith(("binary, ", "float32, "))}
    assert len(roofs) == (0 if isa == "portable" else 2)
    if isa == "avx512":
        assert "binary, XOR and VPOPCNTQ: 1249" in roofs  # 512 / 3 * 2 products a cycle at 3.66 GHz

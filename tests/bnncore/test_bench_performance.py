"""The page of measured figures is filled from results and from nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.performance import CASES, TABLES, Case, fill

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"


def result(other: str | None) -> dict[str, Any]:
    side: dict[str, Any] = {"step_ms_median": 2.0, "step_ms_p10": 1.5, "step_ms_p90": 2.5, "peak_bytes": 1 << 20}
    side |= {"process_peak_bytes": 40 << 20, "phases": {}}
    found: dict[str, Any] = {"isa": "avx512", "bitfleet": side, "preset_digest": "0123456789abcdef"}
    found["machine"] = {"clock_hz": 3.5e9, "cpus": 2, "load_average_before": 0.5}
    energy = {"total_j": 0.002, "compute_j": 0.0005, "memory_j": 0.0015}
    found["energy"] = {"modelled": {"bitfleet": energy, "torch": energy}, "measured": None}
    if other:
        found[other] = side | {"step_ms_median": 9.0, "peak_bytes": 12 << 20}
        found[other] |= {"variant": "fused Adam", "variants": {"fused Adam": {"step_ms_min": 8.5, "peak_bytes": 1e7}}}
        found |= {"speedup": 4.5, "speedup_p10": 4.4, "speedup_p90": 4.6, "memory_ratio": 12.0}
    phases, deep = ({"forward": {"ms": 0.5, "gmacs_per_s": 800.0, "share_of_bound": s}} for s in (0.64, 0.72))
    found["bitfleet"] = side | {"phases": phases, "deep_phases": deep}
    return found


def test_the_page_has_a_place_for_every_table() -> None:
    marks = re.findall(r"^<!-- (\w+) -->\n(?:.*\n)*?<!-- /\1 -->$", PAGE.read_text(), re.M)

    assert sorted(marks) == sorted(TABLES)


def test_filling_writes_results_and_leaves_the_text_alone() -> None:
    results = {case: result(case.against) for case in CASES}

    filled = fill(PAGE.read_text(), results)

    text = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- /\2 -->)", re.S)
    assert text.sub("", filled) == text.sub("", PAGE.read_text())
    assert "| mlp | 1 | avx512 | 2 (1.5 to 2.5) | 9 (1.5 to 2.5) | fused Adam | **4.50** (4.40 to 4.60) |" in filled
    assert "| forward 800 (64 %) | forward 800 (72 %) |" in filled
    assert "| cnv | paper | 2 (1.5 to 2.5) | 9 (1.5 to 2.5) | **4.50** | 12 |" in filled
    assert "| binarynet | 40 | avx512 | 2 (1.5 to 2.5) | 7700 | 3850.0 |" in filled
    assert fill(filled, results) == filled


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_cases_name_is_its_own(case: Case) -> None:
    assert [other for other in CASES if other.name == case.name] == [case]

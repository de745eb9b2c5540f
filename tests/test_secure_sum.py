"""The benchmark of secure sums measures what it says: every row's sum is the plain one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import secure_sum


def test_both_rows_have_the_plain_sum_and_all_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "sum.json"
    words = ["--cohort", "9", "--weights", "5003", "--dropout", "0.3", "--no-flower", "--json", str(target)]
    monkeypatch.setattr("sys.argv", ["secure_sum", *words])

    assert secure_sum.main() == 0

    outcome = json.loads(target.read_text())
    before, after = outcome["rows"]["lost_before_masked"], outcome["rows"]["lost_after_masked"]
    assert outcome["sum_matches"]
    assert before["sum_matches"]
    assert after["sum_matches"]
    assert (outcome["dropped"], before["summed"], after["summed"]) == (2, 7, 9)
    # 10 blocks of 4 planes of 64 bytes, and what the other three messages take.
    assert outcome["bits_per_weight_up"] * 5003 / 8 > 10 * 4 * 64 + 700

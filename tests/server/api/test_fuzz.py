"""A short run of schemathesis in the suite; the long one is ``make fuzz-api``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.server.fuzz_api import fuzz


@pytest.mark.slow
def test_whatever_is_asked_the_api_answers_as_it_says_it_does(tmp_path: Path) -> None:
    options = ("--max-examples", "3", "--phases", "fuzzing", "--seed", "7")

    runs = fuzz(tmp_path, options, ("admin", "read", "none"))
    log = (tmp_path / "log").read_text()

    assert [run.returncode for run in runs] == [0, 0, 0], "\n".join(run.stdout[-5000:] for run in runs)
    assert "level=ERROR" not in log
    assert "Traceback" not in log

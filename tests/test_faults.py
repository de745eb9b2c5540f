"""The machinery of ``make faults``: processes die at the step that was named, and the table is filled in one place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.faults import steps
from benchmarks.faults.kills import make_orders
from benchmarks.faults.table import Outcome, Row, fill_page
from benchmarks.faults.trap import Step, _find
from tests.patience import LIMIT_S

REPOSITORY = Path(__file__).resolve().parent.parent
VICTIM = """
import os, sys
from pathlib import Path
from benchmarks.faults.trap import Step, install
from tests import victim

install([Step.parse(sys.argv[1])], Path(sys.argv[2]))
for _ in range(3):
    victim.outer()
"""
NAMED = [
    step
    for group in (steps.FIRST_START, steps.COORDINATOR, steps.RECOVERY, steps.LAST_COMMIT, steps.DEVICE)
    for step in group
]


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("before tests.victim:outer", ""),
        ("after tests.victim:outer", "outer inner"),
        ("before tests.victim:inner 2", "outer inner outer"),
        ("mid tests.victim:inner", "outer in"),
        ("after tests.victim:say 2 inside tests.victim:inner", "outer inner outer inner"),
        ("after tests.victim:say 9 inside tests.victim:inner", "outer inner outer inner outer inner"),
    ],
)
def test_a_process_is_killed_at_the_step_that_is_named(tmp_path: Path, step: str, said: str) -> None:
    trap = tmp_path / "trap"
    trap.write_text(step)
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'proto'}"}

    ended = subprocess.run(
        [sys.executable, "-c", VICTIM, step, trap], capture_output=True, env=environment, timeout=LIMIT_S, check=False
    )

    assert ended.stdout.decode().split() == said.split(), ended.stderr
    is_reached = " 9 " not in step
    assert (ended.returncode, trap.exists()) == ((-signal.SIGKILL, False) if is_reached else (0, True))


@pytest.mark.parametrize("name", sorted({name for step in NAMED for name in (step.function, step.inside) if name}))
def test_named_steps_exist(name: str) -> None:
    owner, attribute = _find(name)

    assert callable(getattr(owner, attribute))


def test_steps_are_read_as_they_are_written() -> None:
    assert [Step.parse(str(step)) for step in NAMED] == NAMED
    with pytest.raises(ValueError, match="begins with"):
        Step.parse("during os:fsync")


def test_every_named_step_is_ordered_once_and_random_times_fill_up() -> None:
    orders = make_orders(400, seed=0)
    ordered = Counter(step for order in orders for step in order.steps if step is not None)

    assert sum(len(order.steps) for order in orders) >= 400
    assert all(ordered[step] >= 1 for group in (steps.COORDINATOR, steps.RECOVERY, steps.DEVICE) for step in group)


def test_the_table_is_put_between_the_pages_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- kills -->\nold\n<!-- /kills -->\nafter\n")
    row = Row("killed", 200, 0, 1.25, 2.5)
    outcome = Outcome("kills", "2026-01-01", "make faults", 60.0, 90, 50, 150, 0.5, {}, [row])

    fill_page(page, outcome)
    fill_page(page, outcome)

    text = page.read_text()
    assert text.count("| killed | 200 | 0 | 1.2 s | 2.5 s |") == 1
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("<!-- /kills -->\nafter\n")

"""The exit codes that scripts rely on."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from bnncore import errors


@pytest.mark.parametrize(
    ("root", "code"),
    [(errors.ConfigurationError, 3), (errors.UnreachableError, 4), (errors.IncompatibleError, 5)],
)
def test_every_error_of_a_branch_has_its_exit_code(root: type[errors.BitfleetError], code: int) -> None:
    branch = [e for _, e in inspect.getmembers(errors, inspect.isclass) if issubclass(e, root)]

    assert len(branch) >= 1
    assert {error.exit_code for error in branch} == {code}


def test_all_lists_every_error() -> None:
    defined = sorted(name for name, _ in inspect.getmembers(errors, inspect.isclass))

    assert errors.__all__ == defined


def test_errors_cost_no_numpy_and_no_engine() -> None:
    """A process that lives for ever on a small device imports them."""
    script = (
        "import sys, bnncore, bnncore.errors, bnncore.seeds, bnncore.spec, bnncore.durable\n"
        "heavy = [m for m in ('numpy', 'safetensors', 'bnncore._native', 'tqdm') if m in sys.modules]\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )

    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr

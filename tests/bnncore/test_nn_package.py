"""The package where PyTorch is not installed, and what it offers where it is."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import bnncore.nn
from tests.patience import LIMIT_S


def test_without_pytorch_the_first_use_says_what_to_install() -> None:
    code = "import sys; sys.modules['torch'] = None\nimport bnncore.nn\nprint('imported')\nbnncore.nn.BinaryLinear"

    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S, check=False)

    assert run.stdout == "imported\n"
    assert "bnncore.nn.BinaryLinear needs PyTorch, which is not installed. Install it with: pip install" in run.stderr


def test_an_unknown_name_is_no_question_of_pytorch() -> None:
    with pytest.raises(AttributeError, match="no attribute 'BinaryConv3d'"):
        _ = bnncore.nn.BinaryConv3d


def test_every_public_name_is_there() -> None:
    torch: Any = pytest.importorskip("torch")

    assert issubclass(bnncore.nn.Sequential, torch.nn.Sequential)
    assert all(hasattr(bnncore.nn, name) for name in bnncore.nn.__all__)

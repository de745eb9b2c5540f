"""docs/pytorch.md is a program: what it prints is what it says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")

from bnncore.nn import convert  # noqa: E402

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "pytorch.md").read_text()
NUMBER = re.compile(r"\d+\.\d+")


@pytest.mark.slow
def test_the_page_does_what_it_says(data_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BITFLEET_DATA", str(data_root))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
    (promised,) = re.findall(r"^```text\n(.*?)^```$", PAGE, re.M | re.S)
    output, names = io.StringIO(), dict[str, Any]()

    with contextlib.redirect_stdout(output):
        for block in blocks:
            exec(compile(block, "docs/pytorch.md", "exec"), names)

    printed, _, architecture = output.getvalue().partition("Sequential(")
    assert NUMBER.sub("N", printed) == NUMBER.sub("N", promised)
    found, expected = ([float(text) for text in NUMBER.findall(lines)] for lines in (printed, promised))
    assert found[:2] == expected[:2]  # bytes
    # PyTorch adds in an order of the processor's, so two machines train two networks, some points apart.
    assert found[2:] == pytest.approx(expected[2:], abs=6)
    assert found[2] == found[3]
    assert found[4] == found[5]
    assert "BinaryConv2d(6, 16, kernel_size=(1, 9)" in architecture
    network, spec = convert.load_network("network.safetensors")
    assert spec == names["spec"]
    assert len(network) == len(names["network"])

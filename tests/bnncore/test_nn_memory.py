"""What a training step of bnncore.nn takes beside plain PyTorch, by the program that measures it."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from benchmarks.torch_memory import SIDES, Side
from bnncore.zoo import binarynet, resnete18


def test_binarynet_keeps_a_hundredth_of_what_pytorch_keeps() -> None:
    plain, ours = (Side(name, binarynet(), 10).kept_bytes() for name in SIDES[:2])

    assert plain >= 100 * ours  # 25 is what was asked for


def test_resnete18_keeps_a_twenty_fifth_of_what_pytorch_keeps() -> None:
    plain, ours = (Side(name, resnete18(), 4).kept_bytes() for name in SIDES[:2])

    assert plain >= 25 * ours


def test_a_step_allocates_less_with_every_way_to_save() -> None:
    spec = binarynet(widths=(32, 64, 64), dense_widths=(64,))
    allocated = []

    for name in SIDES:
        side = Side(name, spec, 40)
        side.step()
        allocated.append(side.persistent_bytes() + side.allocated_bytes())

    assert allocated == sorted(allocated, reverse=True)
    assert allocated[0] >= 2 * allocated[2]  # of so small a network; docs/pytorch.md has the large one

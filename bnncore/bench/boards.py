"""What a step would take on Raspberry Pis: a model, from counted work and published rates. Nothing here is measured.

Seconds are those of the products at a share of the cores' arithmetic peak, of the element-wise work at their issue
rate, and the bytes at a share of the memory's, one after the other. Joules are seconds times the power of the board
with all cores busy; net joules leave out what the idle board takes, as the paper's figures seem to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bnncore.bench.counting import Kind, count_elements, count_step
from bnncore.optimizer import Preset
from bnncore.spec import ModelSpec

__all__ = ["BOARDS", "PAPER_ON_3B_PLUS", "Board", "model_boards"]

_CORES = 4
_SHARE_OF_PEAK = 0.6
"""Of the products: what this project asks of its kernels; an assumption."""
_SHARE_OF_BANDWIDTH = 0.5
"""Of the memory's transfer rate; an assumption."""
_OPERATIONS_AN_ELEMENT = 30
"""128-bit operations that batch norm, signs, rounding and scales take for a number of a map: on x86 1.0 ns was measured
at 3.66 GHz and two 512-bit operations a cycle, which is as many. An optimizer takes fewer for a weight."""


@dataclass(frozen=True)
class Board:
    """One board.

    Attributes:
      hz: clock of its cores.
      per_cycle: 128-bit operations a cycle and core.
      gmacs: products a second and core at the arithmetic peak, by kind, in 1e9.
      memory_bytes_per_s: transfer rate of its memory.
      idle_w, busy_w: power of the whole board, idle and with all cores busy.
    """

    hz: float
    per_cycle: int
    gmacs: dict[Kind, float]
    memory_bytes_per_s: float
    idle_w: float
    busy_w: float


# Binary products: EOR, CNT and sums, 42.7 an operation (Larq Compute Engine's 8 x 4 x 2 kernel, pull request 521).
# 8-bit gradient by bit: look-ups by TBL, about 18 an operation; with SDOT, 16. 8-bit input: SMLAL, 8 an operation
# (A53: 4.7 measured, google/gemmlowp pull request 78), SDOT 16. Power: pidramble.com's measurements (3 B+: 350 mA and
# 980 mA, 4 B: 540 mA and 1280 mA); Pi 5: PowerJoular's regression, 4.403 W + 3.458 W times the load. Memory: the
# makers' data sheets (LPDDR2-900, LPDDR4-3200, LPDDR4X-4267, 32 bits wide).
BOARDS: dict[str, Board] = {
    "Raspberry Pi 3B+": Board(
        1.4e9, 1, {"binary": 60, "gradient": 26, "input": 4.7, "input_gradient": 4.7}, 3.6e9, 1.9, 5.1
    ),
    "Raspberry Pi 4": Board(
        1.5e9, 2, {"binary": 128, "gradient": 55, "input": 12, "input_gradient": 12}, 12.8e9, 2.7, 6.4
    ),
    "Raspberry Pi 5": Board(
        2.4e9, 2, {"binary": 205, "gradient": 77, "input": 77, "input_gradient": 77}, 17.1e9, 4.4, 7.9
    ),
}
PAPER_ON_3B_PLUS: dict[tuple[str, int], dict[str, float]] = {
    ("mlp", 200): {"seconds": 0.98, "joules": 1.42},
    ("binarynet", 40): {"seconds": 121.2, "joules": 136.53},
}
"""What the authors of arXiv 2102.04270 measured for a batch of their prototype, by network and batch size."""


def model_boards(spec: ModelSpec, batch_size: int, preset: Preset, *, keep_products: bool = False) -> dict[str, Any]:
    """Model a training step on each board, all cores at work.

    Returns:
      JSON values: by board ``seconds`` with its parts, ``joules`` and ``net_joules``; ``paper``, the prototype's
      measured figures where the network and batch are the paper's, else None; and the ``assumptions``.
    """
    work = count_step(spec, batch_size, preset, keep_products=keep_products)
    elements = batch_size * count_elements(spec) + spec.num_binary_weights
    num_bytes = sum(phase.num_bytes for phase in work.values())
    boards: dict[str, Any] = {}
    for name, board in BOARDS.items():
        products = sum(
            count / (board.gmacs[kind] * 1e9) for phase in work.values() for kind, count in phase.macs.items()
        ) / (_CORES * _SHARE_OF_PEAK)
        element_wise = elements * _OPERATIONS_AN_ELEMENT / (board.per_cycle * board.hz * _CORES)
        memory = num_bytes / (board.memory_bytes_per_s * _SHARE_OF_BANDWIDTH)
        seconds = products + element_wise + memory
        boards[name] = {
            "seconds": seconds,
            "products_s": products,
            "element_wise_s": element_wise,
            "memory_s": memory,
            "joules": seconds * board.busy_w,
            "net_joules": seconds * (board.busy_w - board.idle_w),
        }
    is_papers = _is_papers(spec)
    return {
        "model": spec.name,
        "batch_size": batch_size,
        "preset": preset.name,
        "preset_digest": preset.digest,
        "keep_products": keep_products,
        "modelled": True,
        "boards": boards,
        "paper": PAPER_ON_3B_PLUS.get((spec.name, batch_size)) if is_papers else None,
        "assumptions": f"Assumed: {100 * _SHARE_OF_PEAK:.0f} % of the arithmetic peak, {100 * _SHARE_OF_BANDWIDTH:.0f} "
        f"% of the memory's rate, {_OPERATIONS_AN_ELEMENT} operations an element.",
    }


def _is_papers(spec: ModelSpec) -> bool:
    from bnncore.zoo import ZOO

    return spec.name in ZOO and ZOO[spec.name]().digest == spec.digest

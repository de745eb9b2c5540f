"""Joules of a training step: modelled from what it computes and moves.

The constants are those of M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, figure
1.1.9: a 45 nm process at 0.9 V. They are the common yardstick of such models, also of the first version of the paper
that this program builds on (arXiv 2102.04270 v1). They leave out instruction fetch, caches and leakage, so they say how
two algorithms compare, not what a meter shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bnncore.bench.counting import Kind, PhaseWork

__all__ = ["SOURCE", "modelled_energy"]

SOURCE = "M. Horowitz, ISSCC 2014 (45 nm, 0.9 V); bits by share of an 8-bit addition"

_ADD_8 = 0.03e-12
_ADD_32 = 0.1e-12
_MULTIPLY_8 = 0.2e-12
_FLOAT_ADD = 0.9e-12
_FLOAT_MULTIPLY = 3.7e-12
_DRAM_BYTE = 1.3e-9 / 8
"""The lower end of 1.3 to 2.6 nJ for 64 bits."""

_JOULES: dict[Kind, float] = {
    # A comparison of two bits and its share of the count: as two bits of an addition.
    "binary": 2 * _ADD_8 / 8,
    # +g or -g is added.
    "gradient": _ADD_32,
    "input": _ADD_32,
    "input_gradient": _MULTIPLY_8 + _ADD_32,
    "float": _FLOAT_MULTIPLY + _FLOAT_ADD,
}
"""One product with its addition."""


def modelled_energy(work: Mapping[str, PhaseWork]) -> dict[str, Any]:
    """Model the energy of a step from its work by phase.

    Returns:
      ``compute_j`` of the products, ``memory_j`` of the bytes as if all came from DRAM, ``total_j``, and the ``macs``
      and ``bytes`` they were counted from.
    """
    compute = sum(count * _JOULES[kind] for phase in work.values() for kind, count in phase.macs.items())
    num_bytes = sum(phase.num_bytes for phase in work.values())
    return {
        "macs": sum(phase.total_macs for phase in work.values()),
        "bytes": num_bytes,
        "compute_j": compute,
        "memory_j": num_bytes * _DRAM_BYTE,
        "total_j": compute + num_bytes * _DRAM_BYTE,
    }

"""How many products a cycle an instruction set allows: what a kernel cannot exceed, whatever its blocking.

A row says which instructions one block of products needs at least, loads and stores left out, and how many of them a
core of that kind starts in a cycle; the bound is ``macs / operations * per_cycle``. Nothing is said of ``portable``:
what a compiler makes of it has no bound of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from bnncore.bench.counting import Kind, PhaseWork

__all__ = ["Bound", "bound_seconds", "bounds_for"]


@dataclass(frozen=True)
class Bound:
    """One kernel's limit: ``operations`` instructions for ``macs`` products, ``per_cycle`` of them a cycle."""

    kernel: str
    macs: int
    operations: float
    per_cycle: float

    @property
    def macs_per_cycle(self) -> float:
        """Products a cycle, one core."""
        return self.macs / self.operations * self.per_cycle


# Issue rates of 512-bit instructions were measured on Zen 4: VPXORD and VPADDD 2.03 a cycle, VPOPCNTD, VPDPBUSD,
# VFMADD and VPSHUFB 1.0. Intel's server cores since Ice Lake start as many or fewer of the first group.
_AVX512: dict[Kind, Bound] = {
    # VPXORQ, VPOPCNTQ, VPADDQ for 512 pairs of bits; two of these three a cycle.
    "binary": Bound("XOR and VPOPCNTQ", 512, 3, 2),
    # One VPERMB looks the sums of five gradients up, two bytes each, for 32 rows of bits at once; one permute a cycle,
    # and the addition that takes the result up fits in beside it.
    "gradient": Bound("look-up by VPERMB", 160, 1, 1),
    # VPDPBUSD: 64 products of bytes with their sums; one a cycle.
    "input": Bound("VPDPBUSD", 64, 1, 1),
    "input_gradient": Bound("VPDPBUSD", 64, 1, 1),
    # VFMADD231PS: 16 products; one a cycle on Zen 4, two on cores with two 512-bit units.
    "float": Bound("VFMADD231PS", 16, 1, 1),
}
# 256-bit instructions: four a cycle on Zen 4, three on Intel's. The larger number makes the bound hold on both.
_AVX2: dict[Kind, Bound] = {
    # VPXOR, then the bits of each half byte looked up: VPAND, VPSRLW, VPAND, two VPSHUFB, two VPADDB: 8 for 256 pairs.
    "binary": Bound("popcount by VPSHUFB", 256, 8, 4),
    # VPMADDUBSW and VPADDW for 32 products of bytes.
    "gradient": Bound("VPMADDUBSW", 32, 2, 4),
    "input": Bound("VPMADDUBSW", 32, 2, 4),
    # Products of two bytes overflow pairs in 16 bits, so they are widened: VPMADDWD and VPADDD for 16.
    "input_gradient": Bound("VPMADDWD", 16, 2, 4),
    # VFMADD231PS: 8 products; two a cycle.
    "float": Bound("VFMADD231PS", 8, 1, 2),
}
# 128-bit NEON instructions: two a cycle on Cortex-A72 and A76, one on A53 (Arm's optimisation guides).
_NEON: dict[Kind, Bound] = {
    # EOR, CNT, ADD for 128 pairs; the widening of the byte counts is left out.
    "binary": Bound("EOR and CNT", 128, 3, 2),
    # TBL looks the sums of four gradients up for 16 columns, low and high bytes apart: two TBL, ADD for the high bytes,
    # UADDW and UADDW2 for the low ones.
    "gradient": Bound("look-up by TBL", 64, 5, 2),
    # SMULL, SMLAL2, SADALP for 16 products of bytes.
    "input": Bound("SMLAL", 16, 3, 2),
    "input_gradient": Bound("SMLAL", 16, 3, 2),
    "float": Bound("FMLA", 4, 1, 2),
}
# SDOT and UDOT: 16 products of bytes with their sums.
_NEON_DOTPROD: dict[Kind, Bound] = _NEON | {
    "gradient": Bound("SDOT", 16, 1, 2),
    "input": Bound("SDOT", 16, 1, 2),
    "input_gradient": Bound("SDOT", 16, 1, 2),
}
_TABLE = {"avx2": _AVX2, "avx512": _AVX512, "neon": _NEON, "neon_dotprod": _NEON_DOTPROD}

_IN_ORDER_ARM = ("0xd03", "0xd04")
"""CPU parts of Cortex-A53 and A35, which start one 128-bit instruction a cycle."""


def bounds_for(isa: str, cpuinfo: str | None = None) -> dict[Kind, Bound]:
    """Give the bounds of an instruction set by kind of product; none for ``portable`` and for unknown ones.

    Args:
      isa: as ``bitfleet info`` names it.
      cpuinfo: what /proc/cpuinfo says; None: of this machine.
    """
    table = _TABLE.get(isa, {})
    if isa.startswith("neon") and _is_in_order(cpuinfo):
        table = {kind: replace(bound, per_cycle=bound.per_cycle / 2) for kind, bound in table.items()}
    return table


def bound_seconds(work: PhaseWork, bounds: dict[Kind, Bound], clock_hz: float, threads: int) -> float | None:
    """Give the time that a phase's products take at the bound; None where a kind of product has none."""
    if not work.macs or any(kind not in bounds for kind in work.macs):
        return None
    cycles = sum(count / bounds[kind].macs_per_cycle for kind, count in work.macs.items())
    return cycles / (clock_hz * threads)


def _is_in_order(cpuinfo: str | None) -> bool:
    if cpuinfo is None:
        try:
            cpuinfo = Path("/proc/cpuinfo").read_text()
        except OSError:
            return False
    parts = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("CPU part")]
    return any(part in _IN_ORDER_ARM for part in parts)

"""Joules: measured where the board or the processor offers it (``open_meter``), else modelled (``model``).

Without NumPy, and nothing but reading files of the kernel, or one command on a Raspberry Pi 5: the agent measures.
"""

from __future__ import annotations

from bnncore.energy.meter import Meter, open_meter

__all__ = ["Meter", "open_meter"]

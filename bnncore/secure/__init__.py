"""Secure aggregation: a coordinator adds up what devices learned and sees the sum alone.

Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017; the sparse
graph of Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", CCS 2020. What a device does
is ``Participant``, what the coordinator does is ``Combiner``; both are arithmetic: messages go in and come out, and
nothing here sends, waits or stores.

The names below are loaded when they are first used. ``cryptography`` is imported by ``bnncore.secure.crypto`` alone,
which only masking and sealing load: adding numbers up needs none of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnncore.secure.combiner import Combiner as Combiner
    from bnncore.secure.graph import least_degree as least_degree
    from bnncore.secure.participant import Participant as Participant
    from bnncore.secure.ring import RingLayout as RingLayout
    from bnncore.secure.ring import RingSegment as RingSegment
    from bnncore.secure.ring import RingVector as RingVector
    from bnncore.secure.terms import Context as Context
    from bnncore.secure.terms import ExchangeRules as ExchangeRules
    from bnncore.secure.terms import Signer as Signer
    from bnncore.secure.terms import Trust as Trust

__all__ = [
    "Combiner",
    "Context",
    "ExchangeRules",
    "Participant",
    "RingLayout",
    "RingSegment",
    "RingVector",
    "Signer",
    "Trust",
    "least_degree",
]

_HOME = {
    "Combiner": "combiner",
    "Context": "terms",
    "ExchangeRules": "terms",
    "Participant": "participant",
    "RingLayout": "ring",
    "RingSegment": "ring",
    "RingVector": "ring",
    "Signer": "terms",
    "Trust": "terms",
    "least_degree": "graph",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bnncore.secure' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"bnncore.secure.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

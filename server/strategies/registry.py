"""Strategies by name: those that come with bitfleet, those of installed packages, and those registered by a program.

A package offers its own by an entry point, named as the strategy is::

    [project.entry-points."bitfleet.strategies"]
    fedavgm = "my_package:FedAvgM"

One of bitfleet's own is its own file, one row here, and its own test file.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from server.errors import InvalidJobError
from server.strategies.base import CohortStrategy, FoldingStrategy
from server.strategies.fedavg import FedAvg
from server.strategies.fedbuff import FedBuff
from server.strategies.fedopt import FedAdam, FedYogi
from server.strategies.fedprox import FedProx
from server.strategies.krum import Krum, MultiKrum
from server.strategies.signvote import SignVote
from server.strategies.trimmed import Median, TrimmedMean

ENTRY_POINTS = "bitfleet.strategies"
"""Group of the entry points."""

_Kind = type[FoldingStrategy] | type[CohortStrategy]
_KindT = TypeVar("_KindT", bound=_Kind)

_OWN: tuple[_Kind, ...] = (FedAvg, FedProx, FedBuff, FedAdam, FedYogi, SignVote, Median, TrimmedMean, Krum, MultiKrum)

STRATEGIES: dict[str, _Kind] = {strategy.name: strategy for strategy in _OWN}
"""All that were asked for or registered so far."""


def register_strategy(kind: _KindT) -> _KindT:
    """Make a strategy known by its name in this process, for jobs and simulations; fit to decorate the class.

    One of the same name takes the place of the one before, as when a notebook's cell is run again; bitfleet's own keep
    theirs.

    Args:
      kind: a frozen dataclass derived from ``FoldingStrategy`` (``ServerOptimizer`` is the short way) or
        ``CohortStrategy``, whose fields are numbers with defaults.

    Raises:
      InvalidJobError: it is none; the message says what to change.
    """
    _check(kind)
    if STRATEGIES.get(kind.name) in _OWN and kind not in _OWN:
        raise InvalidJobError(f"strategy {kind.name!r} is bitfleet's own; give {kind.__name__} another name")
    STRATEGIES[kind.name] = kind
    return kind


def make_strategy(name: str, parameters: Mapping[str, float] | None = None) -> FoldingStrategy | CohortStrategy:
    """Make a strategy with its parameters; those that are not given have their defaults.

    Raises:
      InvalidJobError: no strategy has this name, or it has no such parameter, or a value is out of its range.
    """
    if name not in STRATEGIES:
        _load_installed(name)
    kind = STRATEGIES[name]
    known = [field.name for field in fields(kind)]
    for key in parameters or {}:
        if key not in known:
            raise InvalidJobError(f"strategy {name!r} has the parameters {', '.join(known) or '(none)'}, not {key!r}")
    return kind(**(parameters or {}))


def _load_installed(name: str) -> None:
    """Register the strategy that an installed package offers by this name."""
    offered = entry_points(group=ENTRY_POINTS)
    for point in offered.select(name=name):
        kind = _load(point)
        if getattr(kind, "name", None) != name:
            raise InvalidJobError(
                f"the entry point {name!r} of {ENTRY_POINTS} leads to {point.value}, whose name is "
                f"{getattr(kind, 'name', None)!r}; the two must be the same"
            )
        register_strategy(kind)
        return
    known = sorted({*STRATEGIES, *offered.names})
    raise InvalidJobError(f"strategy must be one of {', '.join(known)}, got {name!r}")


def _load(point: EntryPoint) -> type[FoldingStrategy]:
    try:
        kind: type[FoldingStrategy] = point.load()
    except Exception as error:  # foreign code, which may fail in any way
        raise InvalidJobError(
            f"strategy {point.name!r} cannot be loaded from {point.value} ({type(error).__name__}: {error}); "
            "repair or remove the package that offers it"
        ) from error
    return kind


def _check(kind: object) -> None:
    """Refuse what is no strategy, with what is missing."""
    called = getattr(kind, "__name__", repr(kind))
    if not isinstance(kind, type) or not issubclass(kind, FoldingStrategy | CohortStrategy):
        raise InvalidJobError(
            f"a strategy must be a class derived from ServerOptimizer, FoldingStrategy or CohortStrategy, got {called}"
        )
    if inspect.isabstract(kind):
        raise InvalidJobError(f"strategy {called} lacks {', '.join(sorted(kind.__abstractmethods__))}")
    name = getattr(kind, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name):
        raise InvalidJobError(
            f'strategy {called} needs a name: name: ClassVar[str] = "..." of small letters, digits and _, got {name!r}'
        )
    known = {field.name for field in fields(kind)}
    for parameter in inspect.get_annotations(kind):
        if parameter not in known and parameter != "name":
            raise InvalidJobError(
                f"{parameter} of strategy {called} is no parameter yet; write @dataclass(frozen=True) above the class"
            )
    without = [field.name for field in fields(kind) if field.default is MISSING]
    if without:
        raise InvalidJobError(f"parameters of strategy {called} need defaults: {', '.join(without)}")

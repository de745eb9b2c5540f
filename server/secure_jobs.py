"""What a job says of secure aggregation: the key ``secure_aggregation`` of the job file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from bnncore.secure.parts import WeightForm
from bnncore.secure.terms import MIN_MEMBERS, ExchangeRules
from server.strategies import FoldingStrategy, make_strategy

WEIGHT_FORMS: Final[Mapping[str, WeightForm]] = {"sign": "signs", "int8": "fixed"}
"""How a difference of weights is told under masks, by the job's ``up_codec``."""

NUM_STEPS: Final = 3
"""Steps of an exchange after the keys."""


class SecureChoice(BaseModel):
    """Devices' updates are added up under masks: the coordinator sees their sum alone."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    min_members: int = Field(default=MIN_MEMBERS, ge=MIN_MEMBERS, le=1_000_000)
    """Updates that a sum is made of at least; with fewer the round has no model."""
    threshold: float = Field(default=2 / 3, gt=0.5, le=1)
    """Part of those who hold shares of a device's secret that opens it."""
    phase_s: float = Field(default=60.0, gt=0, le=86_400, allow_inf_nan=False)
    """Seconds for each step of an exchange."""
    degree: int = Field(default=0, ge=0, lt=1 << 16)
    """Neighbours with which a device shares masks; 0: all."""
    clip: int = Field(default=15, ge=1, le=254)
    """With int8: by how many steps of 1/127 a weight may change in a round."""


def check_secure(
    choice: SecureChoice,
    *,
    strategy: str,
    strategy_params: dict[str, float],
    up_codec: str,
    cohort_size: int,
    quorum: int | None,
) -> None:
    """Check that the rest of a job goes with secure aggregation.

    Raises:
      ValueError: it does not; the message says which keys and why.
    """
    if problem := ExchangeRules(choice.min_members, choice.threshold, choice.degree).problem():
        raise ValueError(f"secure_aggregation: {problem}")
    chosen = make_strategy(strategy, strategy_params)
    if not isinstance(chosen, FoldingStrategy):
        raise ValueError(
            f"strategy {strategy!r} compares single updates, which secure_aggregation hides; use fedavg, fedprox, "
            "fedadam, fedyogi or signvote"
        )
    if chosen.late_rounds:
        raise ValueError(
            f"strategy {strategy!r} adds late updates to the next round's, but the masks of secure_aggregation cancel "
            "within one round; use fedavg"
        )
    if up_codec not in WEIGHT_FORMS:
        raise ValueError(
            f"secure_aggregation adds up whole numbers of few bits: up_codec must be one of "
            f"{', '.join(map(repr, WEIGHT_FORMS))}, got {up_codec!r}"
        )
    if strategy == "signvote" and WEIGHT_FORMS[up_codec] != "signs":
        raise ValueError("strategy 'signvote' counts signs, which a sum of int8 does not tell; use up_codec 'sign'")
    for name, value in (("cohort_size", cohort_size or None), ("quorum", quorum)):
        if value is not None and value < choice.min_members:
            raise ValueError(
                f"{name} ({value}) is below the {choice.min_members} members (min_members) that a sum of "
                "secure_aggregation is made of at least"
            )

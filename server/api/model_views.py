"""The JSON objects about where model versions come from, how two differ, and which one is to be used."""

from __future__ import annotations

from typing import Any

from server.api.view import View
from server.api.views import VersionView, iso_time
from server.storage.promotions import PromotionRecord


class PromotionView(View):
    """A version declared to be the one to use."""

    version: int
    promoted_at: str
    promoted_by: str
    withdrawn_at: str | None
    """When it was rolled back; null: it was not."""
    withdrawn_by: str | None

    @classmethod
    def of(cls, record: PromotionRecord) -> PromotionView:
        """Build the view of a record."""
        return cls(
            version=record.version,
            promoted_at=iso_time(record.promoted_at),
            promoted_by=record.promoted_by,
            withdrawn_at=None if record.withdrawn_at is None else iso_time(record.withdrawn_at),
            withdrawn_by=record.withdrawn_by,
        )


class PromotedView(View):
    """Which version of a model is the one to use."""

    id: str
    promoted_version: int | None
    """Null: none was promoted."""
    history: list[PromotionView]
    """The oldest first."""


class ParentView(View):
    """The version that another one was made of."""

    id: str
    version: int
    weights_digest: str | None
    """Null: its model is not here any more."""


class LineageView(View):
    """Where a version comes from."""

    version: VersionView
    job_name: str
    made_by: str
    """``start`` (the first), ``training``, or ``statistics`` (the round after the last, which trains nothing)."""
    parent: ParentView | None
    """The version before it, or the one of another model that the job started from; null: from the job's seed."""
    start_checkpoint: str | None
    """The file that the job started from."""
    spec_digest: str
    """Of the network's description."""
    seed: int
    round: int | None
    """Null of version 0."""
    attempt: int | None
    committed_at: str | None
    cohort: int
    """Devices that were asked."""
    accepted: int
    """Updates that it is made of."""
    examples: int
    """Samples on which they were trained; 0 where devices do not tell."""
    strategy: str
    strategy_params: dict[str, Any]
    is_secure: bool
    """Whether the coordinator saw the updates' sum alone."""
    epsilon: float | None
    """What it and all versions before it may have told of a device, at ``delta``; null without privacy."""
    delta: float | None
    promotions: list[PromotionView]
    """Of this version, the oldest first."""


class TensorComparisonView(View):
    """How a tensor differs between two versions."""

    name: str
    role: str
    """``weight`` (binary), ``real_weight``, ``bias``, ``beta``, ``mean`` or ``mean_abs_dev``."""
    values: int
    changed_signs: int | None
    """Binary weights that are +1 in one and -1 in the other; null of others."""
    distance: float
    """L2 norm of the difference; latent weights lie in [-1, 1]."""


class ComparisonView(View):
    """How two versions of a model differ."""

    id: str
    a: VersionView
    b: VersionView
    accuracy_difference: float | None
    """Of b, less that of a, in percent points; null where one was not evaluated."""
    loss_difference: float | None
    binary_weights: int
    changed_signs: int
    """Binary weights that are +1 in one and -1 in the other."""
    distance: float
    """L2 norm of the difference of all parameters, statistics left out."""
    tensors: list[TensorComparisonView]

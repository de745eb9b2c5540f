"""The key ``privacy`` of a job: how much an update may tell of the device that it came from."""

from __future__ import annotations

import json
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bnncore.secure.privacy import Privacy, adapted_clip
from bnncore.secure.values import ValueForm
from bnncore.spec import ModelSpec
from server.privacy.accountant import epsilon_after, multiplier_for
from server.secure_jobs import WEIGHT_FORMS
from server.storage.base import JobRecord
from server.strategies import FoldingStrategy, make_strategy

__all__ = ["PrivacyChoice", "check_privacy", "privacy_of"]

_ACCOUNTED = 1 - 1e-9
"""The account goes by a little less noise, since a sum of discrete Gaussians is not quite one: of no form is it more
(``ValueForm.accounted_multiplier``)."""

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PrivacyChoice(BaseModel):
    """Differential privacy at the level of a device, with a budget at which the job stops."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    mechanism: Literal["distributed", "central"]
    epsilon: float = Field(gt=0, le=1000, allow_inf_nan=False)
    delta: float = Field(default=1e-5, gt=0, lt=0.1, allow_inf_nan=False)
    clip: _Positive | None = None
    clip_quantile: float | None = Field(default=None, gt=0, lt=1)
    noise_multiplier: _Positive | None = None
    level: Literal["device", "example"] = "device"

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.level == "example":
            raise ValueError(
                "level 'example' is not offered: it needs each example's own gradient clipped before they are added, "
                "and batch norm makes every example's gradient depend on the whole batch; level 'device' hides all "
                "examples of a device at once"
            )
        return self

    def solved(self, releases: int) -> PrivacyChoice:
        """Give this choice with its noise: the least that keeps so many sums within the budget, where it names none.

        Raises:
          ConfigurationError: dp-accounting is not installed, or no noise is enough.
        """
        if self.noise_multiplier is not None:
            self.spent(1)  # whatever is missing for the account is to be told now
            return self
        noise = multiplier_for(self.epsilon, self.delta, releases) / _ACCOUNTED
        return self.model_copy(update={"noise_multiplier": noise})

    def form(self, noisy_members: int, clip: float | None = None) -> Privacy:
        """Give what a round's form needs of it.

        Args:
          noisy_members: devices that share the noise out.
          clip: of the round; None: the first one's.
        """
        return Privacy(self.mechanism, self._noise, noisy_members, clip or self.clip or 0.0)

    def next_clip(self, clip: float, within: float | None) -> float | None:
        """Give the clip of the next round; None: it stays the job's own.

        Args:
          clip: of this round.
          within: part of the devices that were within it; None: nobody told.
        """
        if self.clip_quantile is None or within is None:
            return None
        return adapted_clip(clip, within, self.clip_quantile)

    @property
    def _noise(self) -> float:
        assert self.noise_multiplier is not None  # solved when the job was validated
        return self.noise_multiplier

    def spent(self, releases: int) -> float:
        """Give epsilon at the job's delta after so many sums."""
        return epsilon_after(self._noise * _ACCOUNTED, self.delta, releases)

    def why_spent(self, releases: int) -> str:
        """Say why one more sum may not be seen; empty: it may.

        Args:
          releases: sums that were seen.
        """
        after = self.spent(releases + 1)
        if after <= self.epsilon:
            return ""
        return (
            f"the privacy budget is spent: epsilon is {self.spent(releases):.3f} of {self.epsilon:g} at delta "
            f"{self.delta:g} after {releases} sums, and would be {after:.3f} after one more"
        )


def check_privacy(
    choice: PrivacyChoice,
    *,
    is_secure: bool,
    strategy: str,
    strategy_params: dict[str, float],
    up_codec: str,
    local_validation: float,
    spec: ModelSpec,
) -> None:
    """Check that the rest of a job goes with privacy.

    Raises:
      ValueError: it does not; the message says which keys and why.
      ConfigurationError: the network has no bounds that privacy needs.
    """
    if choice.mechanism == "distributed" and not is_secure:
        raise ValueError(
            "privacy: the noise of one device hides nothing by itself; mechanism 'distributed' needs secure_aggregation"
        )
    chosen = make_strategy(strategy, strategy_params)
    if not isinstance(chosen, FoldingStrategy) or chosen.late_rounds:
        raise ValueError(f"privacy bounds each update in a sum of one round, which strategy {strategy!r} does not make")
    if up_codec not in WEIGHT_FORMS:
        raise ValueError(f"privacy: up_codec must be one of {', '.join(map(repr, WEIGHT_FORMS))}, got {up_codec!r}")
    if WEIGHT_FORMS[up_codec] == "fixed" and choice.clip is None:
        raise ValueError(
            "privacy of up_codec 'int8' needs clip: the largest L2 norm of a device's changes of weights, in steps of "
            "1/127 (200 is usual); up_codec 'sign' needs none"
        )
    if WEIGHT_FORMS[up_codec] == "signs" and (choice.clip is not None or choice.clip_quantile is not None):
        raise ValueError("privacy: clip and clip_quantile are for up_codec 'int8'; the norm of signs is known")
    if local_validation:
        raise ValueError("privacy leaves measurements on devices out of what they tell; local_validation must be 0")
    ValueForm(spec, "update", weights=WEIGHT_FORMS[up_codec], privacy=choice.form(1))


def privacy_of(job: JobRecord) -> PrivacyChoice | None:
    """Read what a stored job asks for; None: no privacy."""
    value = json.loads(job.config_json).get("privacy")
    return None if value is None else PrivacyChoice.model_validate(value)

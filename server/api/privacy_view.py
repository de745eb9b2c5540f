"""What the REST API says of a job's differential privacy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.api.view import View

if TYPE_CHECKING:
    from server.privacy import PrivacyChoice


class PrivacyView(View):
    """What a job's models may have told of a device, and what they may."""

    mechanism: str
    epsilon: float
    """After the rounds that are committed."""
    epsilon_budget: float
    """At which the job ends."""
    delta: float
    noise_multiplier: float

    @classmethod
    def of(cls, choice: PrivacyChoice, sums_seen: int) -> PrivacyView:
        """Build the view after so many sums. Blocking, the first time for a second: the account's library is loaded."""
        return cls(
            mechanism=choice.mechanism,
            epsilon=choice.spent(sums_seen),
            epsilon_budget=choice.epsilon,
            delta=choice.delta,
            noise_multiplier=choice.noise_multiplier or 0.0,
        )

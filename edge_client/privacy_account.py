"""What the outbox ledger says of this device's privacy: which sums it helped to open, and what is spent of its budget.

An update serves in one sum: were it added up again after this device had helped to open the first, the difference of
the two could be the update of one that is in one of them alone.

A sum that the device's masked update went into, with Gaussian noise of z times the most that the device can add, is
rho-zCDP with rho = 1 / (2 z^2), the discrete Gaussian too (Bun and Steinke, 2016, Proposition 1.6; Canonne, Kamath and
Steinke, 2020, Theorem 4); rho adds up over rounds and jobs, and

    epsilon = rho + 2 sqrt(rho ln(1 / delta))                   (Bun and Steinke, 2016, Proposition 1.3)

The outbox ledger is the account: each masked payload in it, with the noise that was promised, counts once for its
attempt. That is never less than what a coordinator's accountant finds, whose bounds are tighter. The data are the same
for all jobs, so the budget is one for all.
"""

from __future__ import annotations

import math

from bitfleet.v1 import fleet_pb2 as wire
from edge_client.errors import TaskDeclinedError
from edge_client.outbox import Dispatch, Outbox, Privacy
from edge_client.policy import Policy

__all__ = ["PrivacyAccount", "epsilon_of", "privacy_of", "spent_in"]

_Exchange = tuple[str, int, int]


def epsilon_of(rho: float, delta: float) -> float:
    """Give epsilon at delta of what is rho-zCDP."""
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))


def privacy_of(task: wire.Task) -> Privacy | None:
    """Give what a task promises of noise; None: nothing."""
    if not task.secure.HasField("privacy"):
        return None
    told = task.secure.privacy
    return Privacy(told.mechanism, told.clip, told.noise_multiplier, told.delta)


def spent_in(outbox: Outbox) -> float:
    """Add up what the ledger says was spent: rho."""
    spent: dict[_Exchange, float] = {}
    for entry in outbox.dispatches():
        _count(spent, entry)
    return math.fsum(spent.values())


def _count(spent: dict[_Exchange, float], entry: Dispatch) -> None:
    if entry.kind == "masked" and entry.privacy is not None and entry.privacy.noise_multiplier > 0:
        spent[entry.job_id, entry.round_number, entry.attempt] = _rho(entry.privacy.noise_multiplier)


def _rho(noise_multiplier: float) -> float:
    return 1 / (2 * noise_multiplier**2)


class PrivacyAccount:
    """The account of one device, held against its owner's ``max_epsilon``.

    Args:
      outbox: the ledger.
      policy: the owner's rules.
    """

    def __init__(self, outbox: Outbox, policy: Policy) -> None:
        self._policy = policy
        self._spent: dict[_Exchange, float] = {}
        self._revealed: dict[tuple[str, int], int] = {}
        for entry in outbox.dispatches():
            _count(self._spent, entry)
            if entry.kind == "reveal":
                self._revealed[entry.job_id, entry.round_number] = entry.attempt

    def check(self, task: wire.Task) -> None:
        """Check that the owner lets this device's data go into the task's sum.

        Raises:
          TaskDeclinedError: an update of its round is in a sum that was revealed; or its noise is too little for what
            is left of the budget, or is not the devices' own.
        """
        attempt = self._revealed.get((task.job_id, task.round_number))
        if attempt is not None and task.HasField("secure"):
            raise TaskDeclinedError(
                f"this device's update of round {task.round_number} is in a sum that was revealed (attempt {attempt}): "
                "in a second one, with others, the difference of the two would show whose updates are in one alone"
            )
        limit, delta = self._policy.max_epsilon, self._policy.delta
        if limit is None:
            return
        privacy = privacy_of(task)
        if privacy is None or privacy.mechanism != "distributed":
            raise TaskDeclinedError(
                "the device's owner limits epsilon, so noise must be added on the devices themselves (mechanism "
                f"distributed); this job has {'none' if privacy is None else repr(privacy.mechanism)}"
            )
        exchange = (task.job_id, task.round_number, task.secure.attempt)
        spent = math.fsum(rho for key, rho in self._spent.items() if key != exchange)
        after = epsilon_of(spent + _rho(privacy.noise_multiplier), delta)
        if not after <= limit:
            raise TaskDeclinedError(
                f"the device's owner allows epsilon {limit:g} at delta {delta:g} over all jobs; "
                f"{epsilon_of(spent, delta):.3g} is spent, and with this round it would be {after:.3g}"
            )

    def note_masked(self, task: wire.Task) -> None:
        """Count a task whose masked update is about to leave."""
        privacy = privacy_of(task)
        if privacy is not None:
            self._spent[task.job_id, task.round_number, task.secure.attempt] = _rho(privacy.noise_multiplier)

    def note_reveal(self, task: wire.Task) -> None:
        """Remember that what opens the task's sum is about to leave."""
        self._revealed[task.job_id, task.round_number] = task.secure.attempt

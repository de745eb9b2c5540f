"""Whether a task may be begun: what it is asked before anything is downloaded, allocated or trained for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bitfleet.v1 import fleet_pb2 as wire
from edge_client.daily_use import DailyUse
from edge_client.errors import TaskDeclinedError, one_line
from edge_client.machine import memory_bytes
from edge_client.model_cache import STEP_CAPACITY
from edge_client.policy import Policy
from edge_client.privacy_account import PrivacyAccount

__all__ = ["TaskRules", "check_secure", "is_name", "is_well_named", "memory_limit", "seconds_left"]

MAX_ID_CHARS = 256
MAX_SCALES_BYTES = 1 << 20
MIN_MEMBERS = 3
"""In a sum of two, each sees the other's part (``bnncore.secure.terms``, which this process does not load)."""
_LONGEST_DEADLINE_S = 1e8


def memory_limit(memory_budget: int, policy: Policy) -> int:
    """Give the bytes that a trainer may take.

    Args:
      memory_budget: of the command line; 0: without limit.
      policy: the owner's rules.

    Returns:
      The least of both and of what the machine, or this process's control group, has.
    """
    machine = memory_bytes()
    limits = (machine, memory_budget or machine, machine if policy.max_memory is None else policy.max_memory)
    return min(limits)


def is_name(text: str) -> bool:
    """Say whether an id is such as goes into logs, ledgers and answers."""
    return 0 < len(text) <= MAX_ID_CHARS and text.isprintable()


def is_well_named(task: wire.Task) -> bool:
    """Say whether a task's ids are such as go into logs, ledgers and answers."""
    return is_name(task.task_id) and is_name(task.job_id)


def seconds_left(deadline_s: float) -> float:
    """Make a task's deadline one that a clock can wait for, whatever number it is."""
    return min(deadline_s, _LONGEST_DEADLINE_S) if deadline_s > 0 else 0.0


@dataclass(frozen=True)
class TaskRules:
    """The owner's rules, and what of today's budgets is used."""

    policy: Policy
    use: DailyUse
    max_memory: int
    """Bytes that a trainer may take."""
    account: PrivacyAccount
    """What of the owner's privacy budget is spent."""
    has_identity: bool
    """Whether this device, and so others too, can sign what it says."""

    def check(self, task: wire.Task) -> None:
        """Check what a task says of itself. Its memory, which it does not say, is planned by the trainer.

        Raises:
          TaskDeclinedError: it asks for more than the owner lets it, or for what no coordinator asks.
        """
        policy, steps_bytes = self.policy, sum(step.num_bytes for step in task.steps)
        if not policy.allows_job(task.job_id):
            raise TaskDeclinedError(f"the device's owner does not let it work for job {task.job_id!r}")
        if len(task.steps) > STEP_CAPACITY or (task.steps and steps_bytes > task.model_bytes):
            raise TaskDeclinedError(
                f"the steps to a model are {STEP_CAPACITY} at most and fewer bytes than it, got {len(task.steps)} of "
                f"{steps_bytes} bytes to one of {task.model_bytes}"
            )
        _at_most("a model of", "bytes", task.model_bytes, policy.max_model)
        _at_most("a task of", "local steps", task.training.local_steps, policy.max_steps)
        self._check_privacy(task)
        self.use.check_task()

    def _check_privacy(self, task: wire.Task) -> None:
        """Check among how many, and how, an update would be hidden."""
        policy, is_secure = self.policy, task.HasField("secure")
        if policy.require_secure_aggregation and not is_secure:
            raise TaskDeclinedError("the device's owner requires secure aggregation, which this job does not have")
        if policy.require_secure_aggregation and not self.has_identity:
            raise TaskDeclinedError(
                "the device's owner requires secure aggregation; without certificates nobody's keys are signed"
            )
        least = task.secure.min_members if is_secure else task.quorum
        if least < policy.min_cohort > 1:
            raise TaskDeclinedError(
                f"the device's owner wants models made of {policy.min_cohort} updates at least, this task's may be of "
                f"{least}"
            )
        if is_secure:
            check_secure(task.secure)
        self.account.check(task)


def check_secure(secure: wire.SecureAggregation) -> None:
    """Check that a secure sum, as a task describes it, hides anything; the exchange itself is judged step by step.

    Raises:
      TaskDeclinedError: it does not, or makes no sense.
    """
    if secure.attempt < 1 or secure.weights not in ("signs", "fixed") or len(secure.scales) > MAX_SCALES_BYTES:
        raise TaskDeclinedError(
            f"a secure sum has attempts from 1 on and tells weights as signs or fixed, got {secure.attempt} and "
            f"{one_line(secure.weights)!r:.40}"
        )
    if not 0.5 < secure.threshold <= 1:
        raise TaskDeclinedError(
            f"a secure sum needs a threshold above 0.5 and at most 1, got {secure.threshold:g}: with half of the "
            "shares a coordinator could take a device's masks off"
        )
    if secure.min_members < MIN_MEMBERS:
        raise TaskDeclinedError(f"a secure sum needs {MIN_MEMBERS} members at least, got {secure.min_members}")
    if secure.HasField("privacy"):
        told = secure.privacy
        if not (0 < told.noise_multiplier < math.inf and 0 <= told.clip < math.inf and 0 < told.delta < 1):
            raise TaskDeclinedError("noise and bound of a secure sum must be numbers that give it privacy")


def _at_most(what: str, unit: str, number: int, limit: int | None) -> None:
    if limit is not None and number > limit:
        raise TaskDeclinedError(f"the device's owner allows {what} at most {limit} {unit}, this one has {number}")

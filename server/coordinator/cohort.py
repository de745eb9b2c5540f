"""Who takes part: which devices fit a job, and which of them train in a round."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence


def select_cohort(device_ids: Iterable[str], size: int, seed: int, round_number: int) -> tuple[str, ...]:
    """Choose a round's cohort as a function of (seed, round number, device ids) alone.

    Every device draws a rank from a hash of (seed, round, id); the lowest ranks are taken. Whether a device is chosen
    depends on the others only through their ranks, so a coordinator that was restarted selects the same cohort, and
    no generator has to be kept.

    Args:
      device_ids: candidates, in any order.
      size: how many to choose; 0 = all of them.
      seed: the job's seed.
      round_number: counted from 1.

    Returns:
      The chosen ids, sorted; all candidates when there are no more than ``size``.
    """

    def rank(device_id: str) -> bytes:
        return hashlib.sha256(f"cohort/{seed}/{round_number}/{device_id}".encode()).digest()

    candidates = sorted(set(device_ids))
    if size == 0 or len(candidates) <= size:
        return tuple(candidates)
    return tuple(sorted(sorted(candidates, key=rank)[:size]))


def why_ineligible(
    *,
    job_classes: Sequence[str],
    job_input_shape: Sequence[int],
    device_classes: Sequence[str],
    device_input_shape: Sequence[int],
    device_num_examples: int,
) -> str | None:
    """Say why a device's data do not fit a job, or None when they do.

    A device may know fewer classes than the job, in any order (it maps its labels by name), but none that the job
    does not have; its samples must have the job's shape, and it must have at least one.
    """
    if device_num_examples < 1:
        return "it has no training samples"
    if tuple(device_input_shape) != tuple(job_input_shape):
        return f"its samples have shape {list(device_input_shape)}, the job needs {list(job_input_shape)}"
    if not device_classes:
        return "it names no classes"
    unknown = sorted(set(device_classes) - set(job_classes))
    if unknown:
        return f"its classes {unknown} are not among the job's: {list(job_classes)}"
    return None

"""Who takes part: which devices fit a job, and which of them train in a round."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

from bnncore.data.images import image_shape_of


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
    job_has_input_range: bool,
    device_classes: Sequence[str],
    device_input_shape: Sequence[int],
    device_num_examples: int,
    any_image_shape: bool = False,
    needs_input_range: bool = False,
) -> str | None:
    """Say why a device's data do not fit a job, or None when they do.

    A device may know fewer classes than the job, in any order (it maps its labels by name), but none that the job
    does not have, and it must have at least one sample. Its samples must have the job's shape. Pictures are brought to
    it; real numbers must be as many, and are told by the job's range what they become.
    """
    if device_num_examples < 1:
        return "it has no training samples"
    problem = _why_other_form(
        job_input_shape,
        job_has_input_range,
        device_input_shape,
        any_image_shape=any_image_shape,
        needs_input_range=needs_input_range,
    )
    if problem is not None:
        return problem
    if not device_classes:
        return "it names no classes"
    unknown = sorted(set(device_classes) - set(job_classes))
    if unknown:
        return f"its classes {unknown} are not among the job's: {list(job_classes)}"
    return None


def _why_other_form(
    job_shape: Sequence[int],
    job_has_range: bool,
    device_shape: Sequence[int],
    *,
    any_image_shape: bool,
    needs_input_range: bool,
) -> str | None:
    if needs_input_range and not job_has_range:
        return "its samples are real numbers, and the job says by no input_range what they become"
    if job_has_range and not needs_input_range:
        return "its samples are 8-bit numbers, the job's input_range is for real ones"
    if needs_input_range:
        if math.prod(device_shape) != math.prod(job_shape):
            return f"its samples are {math.prod(device_shape)} numbers, the job needs {math.prod(job_shape)}"
    elif any_image_shape:
        if image_shape_of(job_shape) is None:
            return f"its samples are pictures, the job needs shape {list(job_shape)}"
    elif tuple(device_shape) != tuple(job_shape):
        return f"its samples have shape {list(device_shape)}, the job needs {list(job_shape)}"
    return None


def why_not_allowed(job_labels: Mapping[str, str], device_labels: Mapping[str, str]) -> str | None:
    """Say why a job is not for a device, or None when it is: the device has all labels that the job asks for."""
    missing = [f"{key}={value}" for key, value in sorted(job_labels.items()) if device_labels.get(key) != value]
    return f"the job is for devices labelled {', '.join(missing)}" if missing else None

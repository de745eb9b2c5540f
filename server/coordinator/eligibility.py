"""Which of the devices that are there a job can have: a matter of its configuration and of what a device tells."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping

from server.coordinator.cohort import why_ineligible, why_not_allowed
from server.coordinator.memory import why_too_large
from server.coordinator.sessions import Fleet, Session
from server.jobs import JobConfig


class Eligibility:
    """A job's demands.

    Args:
      config: the job's.
    """

    def __init__(self, config: JobConfig) -> None:
        self._config = config
        self._why_too_large = functools.lru_cache(functools.partial(why_too_large, config))  # a plan takes milliseconds

    def why_not(self, session: Session) -> str | None:
        """Say why a device cannot take part now, or None: its labels first, its data, its memory, its conditions."""
        hello = session.hello
        problem = why_ineligible(
            job_classes=self._config.classes,
            job_input_shape=self._config.input_shape,
            job_has_input_range=self._config.input_range is not None,
            device_classes=hello.classes,
            device_input_shape=hello.input_shape,
            device_num_examples=hello.num_examples,
            any_image_shape=hello.any_image_shape,
            needs_input_range=hello.needs_input_range,
        )
        return (
            why_not_allowed(self._config.device_labels, hello.labels)
            or problem
            or self._why_too_large(hello.memory_bytes, hello.num_examples, hello.threads)
            or session.heartbeat.conditions.reason
        )


def problems_of(
    fleet: Fleet, device_ids: Collection[str], jobs: Mapping[str, Eligibility]
) -> dict[str, dict[str, str]]:
    """Say by device and job why a connected device cannot take part; see ``FleetJobs.problems``."""
    found: dict[str, dict[str, str]] = {}
    for device_id in device_ids:
        session = fleet.get(device_id)
        if session is not None:
            reasons = {job_id: job.why_not(session) for job_id, job in jobs.items()}
            found[device_id] = {job_id: reason for job_id, reason in reasons.items() if reason is not None}
    return found

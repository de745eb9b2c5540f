"""Which payloads may go when room is needed: those of old model versions that nobody needs any more.

Kept whatever happens: of every job the newest two versions, what late updates of an asynchronous job start from, the
best version by either judgement, what is still to be evaluated, what a job that has not begun starts from, what was
promoted and not withdrawn, each with the version that has the statistics of its weights; and the steps that devices of
a job that is not over may ask for. The oldest of the rest goes first. Its row stays, with its digests and what came of
it. Updates need no rule: their payloads go with their round's commit.

Blocking; on the storage thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from server.coordinator.job_state import JobState
from server.coordinator.versions import MOST_STEPS, statistics_version
from server.jobs import JobConfig
from server.storage.base import JobRecord, RoundRecord, Storage, VersionRecord
from server.storage.payloads import BlobStore

Change = tuple[VersionRecord, VersionRecord]
"""A version as it is, and as it is to be."""

_NEWEST = 2
"""One to go on from, and one in case that it is damaged."""


def removable(storage: Storage) -> list[Change]:
    """List the versions of which a payload may go; the oldest first."""
    jobs = storage.list_jobs()
    wanted = {start for job in jobs if (start := _start_of(job, storage)) is not None}
    wanted |= {(job_id, version) for job_id, versions in storage.promotions.standing().items() for version in versions}
    found = [record for job in jobs for record in _removable_of(job, storage, wanted)]
    return sorted(found, key=lambda change: change[0].created_at)


def payloads_gone(before: VersionRecord, after: VersionRecord) -> set[str]:
    """Return the digests of the payloads that a version had and is to have no more."""
    gone = {before.payload_digest, before.state_digest} if before.is_kept > after.is_kept else set()
    if before.is_step_kept > after.is_step_kept and before.step_digest is not None:
        gone.add(before.step_digest)
    return gone


def let_go(storage: Storage, blobs: BlobStore, num_bytes: int) -> set[str]:
    """Write down that versions are no longer kept until so many bytes are free; returns the digests to remove."""
    gone: set[str] = set()
    changed: list[VersionRecord] = []
    left = num_bytes
    for before, after in removable(storage):
        if left <= 0:
            break
        more = payloads_gone(before, after) - gone
        left -= sum(map(blobs.size, more))
        gone |= more
        changed.append(after)
    storage.replace_versions(changed)
    return gone


def _removable_of(job: JobRecord, storage: Storage, wanted: set[tuple[str, int]]) -> Iterator[Change]:
    versions = storage.list_versions(job.job_id)
    if not versions:
        return
    newest, rounds = versions[-1].version, storage.list_rounds(job.job_id)
    needed = _best(rounds) | {version for job_id, version in wanted if job_id == job.job_id}
    told = json.loads(job.config_json)
    rounds_total, batches = told["rounds"], told["statistics_batches"]
    # An export takes them from there.
    needed |= {statistics_version(version, rounds=rounds_total, statistics_batches=batches) for version in needed}
    oldest = newest - _NEWEST + 1
    first_step = newest + 1
    if not JobState(job.state).is_over:
        config = JobConfig.from_json(job.config_json)
        oldest = min(oldest, newest - config.late_rounds)
        first_step = newest - MOST_STEPS + 1
        needed |= _not_evaluated(config, rounds)
    for version in versions:
        number = version.version
        after = replace(
            version,
            is_kept=version.is_kept and (number >= oldest or number in needed),
            is_step_kept=version.is_step_kept and (number >= first_step or version.step_digest is None),
        )
        if after != version:
            yield version, after


def _best(rounds: Sequence[RoundRecord]) -> set[int]:
    by_set = [round_ for round_ in rounds if round_.accuracy is not None]
    by_devices = [round_ for round_ in rounds if round_.local_accuracy is not None]
    best = [max(by_set, key=lambda round_: round_.accuracy or 0.0)] if by_set else []
    best += [max(by_devices, key=lambda round_: round_.local_accuracy or 0.0)] if by_devices else []
    return {round_.round_number for round_ in best}


def _not_evaluated(config: JobConfig, rounds: Sequence[RoundRecord]) -> set[int]:
    """Return the latest versions that wait for their evaluation, with those whose statistics it takes."""
    if config.evaluation is None:
        return set()
    waiting = [round_.round_number for round_ in rounds if round_.state == "COMMITTED" and round_.accuracy is None]
    return {number + after for number in waiting[-MOST_STEPS:] for after in (0, 1)}


def _start_of(job: JobRecord, storage: Storage) -> tuple[str, int] | None:
    """Return the version of another job's model that a job is still to start from."""
    start = json.loads(job.config_json).get("start")
    is_over = JobState(job.state).is_over
    if is_over or not start or start["model"] is None or storage.get_version(job.job_id, 0) is not None:
        return None
    return start["model"], start["version"]

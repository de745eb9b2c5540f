"""What is done when the disk has lost or damaged payloads of a job: it goes on from the last version that is whole.

A payload is named by its digest, so damage is found out. Rounds beyond the last whole version are played again; a step
that is lost costs bytes, since the whole model is sent in its place.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

from server.coordinator.disk import Disk
from server.coordinator.versions import steps_to
from server.errors import PayloadLostError
from server.storage.base import VersionRecord
from server.storage.payloads import BlobStore

_log = logging.getLogger(__name__)


async def go_back_to_whole_version(disk: Disk, job_id: str) -> str:
    """Forget a job's newest versions, and the rounds that made them, as far as they cannot be read any more.

    Returns:
      What was lost and where the job goes on, for people; empty when nothing was.
    """
    lost: list[VersionRecord] = []
    for version in reversed(await disk.run(disk.storage.list_versions, job_id)):
        missing = await asyncio.to_thread(_lost_of, disk.blobs, version)
        if not missing:
            break
        lost.append(version)
        _log.error("event=version_lost job=%s version=%d payloads=%s", job_id, version.version, ",".join(missing))
    if not lost:
        return ""
    await disk.run(disk.storage.forget_versions, job_id, lost[-1].version - 1)
    digests = {digest for version in lost for digest in (*_digests_of(version), version.memory_digest) if digest}
    await disk.run(disk.remove_unreferenced, digests)
    last = f"from version {lost[-1].version - 1}" if lost[-1].version else "from the start"
    return f"the disk has lost or damaged what {_range_of(lost)} consisted of; the job goes on {last}"


async def check_version(disk: Disk, version: VersionRecord) -> None:
    """Read a version through before work is built on it.

    Raises:
      PayloadLostError: it is not whole.
    """
    if lost := await asyncio.to_thread(_lost_of, disk.blobs, version):
        raise PayloadLostError(f"version {version.version} of job {version.job_id} is lost: {', '.join(lost)}")


async def without_lost_steps(disk: Disk, versions: Sequence[VersionRecord]) -> list[VersionRecord]:
    """Take the steps out of versions that devices would be sent and the disk has lost."""
    sent, _ = steps_to(versions)
    lost = await asyncio.to_thread(_lost, disk.blobs, [step.digest for step in sent])
    for digest in lost:
        _log.error("event=step_lost job=%s payload=%s", versions[-1].job_id, digest)
    return [replace(one, step_digest=None, step_bytes=0) if one.step_digest in lost else one for one in versions]


def _digests_of(version: VersionRecord) -> tuple[str, ...]:
    return version.payload_digest, version.state_digest


def _lost_of(blobs: BlobStore, version: VersionRecord) -> list[str]:
    return _lost(blobs, _digests_of(version))


def _lost(blobs: BlobStore, digests: Iterable[str]) -> list[str]:
    return [digest for digest in digests if not blobs.holds(digest)]


def _range_of(lost: Sequence[VersionRecord]) -> str:
    newest, oldest = lost[0].version, lost[-1].version
    return f"version {newest}" if newest == oldest else f"versions {oldest} to {newest}"

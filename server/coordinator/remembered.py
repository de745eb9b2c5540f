"""What a job remembers from one round to the next, beside the model: one payload for each version.

It holds the strategy's memory, under secure aggregation the magnitudes of signs that the cohort has in common, and
under privacy the clip of the next round, where that follows what devices say.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import load, save

from bnncore.state import State
from server.errors import PayloadLostError
from server.storage.base import VersionRecord
from server.storage.payloads import BlobStore

_log = logging.getLogger(__name__)

_SCALES = "cohort/scales"
_CLIP = "cohort/clip"


@dataclass(frozen=True)
class Remembered:
    """What is kept until the next round.

    Attributes:
      memory: the strategy's; None: it keeps none.
      scales: magnitudes of signs that the cohort has in common, as they travel in a task; empty: none were agreed.
      clip: largest L2 norm of what a device tells of its weights; None: the job's own.
    """

    memory: State | None = None
    scales: bytes = b""
    clip: float | None = None

    def to_bytes(self) -> bytes | None:
        """Write it as a payload; None where there is nothing to keep."""
        if self.memory is None and not self.scales and self.clip is None:
            return None
        arrays = dict(self.memory or {})
        if self.clip is not None:
            arrays[_CLIP] = np.array([self.clip])
        if self.scales:
            arrays[_SCALES] = np.frombuffer(self.scales, np.uint8)
        return save(arrays)


def recall(blobs: BlobStore, version: VersionRecord) -> Remembered:
    """Read what was remembered when a version was made; where the disk has lost it, all begins anew."""
    if version.memory_digest is None:
        return Remembered()
    try:
        arrays = load(blobs.get(version.memory_digest))
    except PayloadLostError as error:
        _log.error("event=memory_lost job=%s version=%d reason=%r", version.job_id, version.version, str(error))
        return Remembered()
    scales, clip = arrays.pop(_SCALES, None), arrays.pop(_CLIP, None)
    return Remembered(
        arrays or None, b"" if scales is None else scales.tobytes(), None if clip is None else float(clip[0])
    )

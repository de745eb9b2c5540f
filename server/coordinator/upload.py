"""An update that has arrived whole, on its way into its round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bnncore.codec import get_codec
from server.coordinator.disk import Disk
from server.coordinator.messages import UpdateHeader
from server.jobs import JobConfig
from server.storage.payloads import BlobWriter
from server.strategies import Update


@dataclass
class Upload:
    """Its header, its bytes, and what is to be added up.

    Attributes:
      header: what the device says of it.
      writer: its bytes on disk, not yet kept; None where another replica has kept them.
      update: its decoded tensors; None where they are added up by the replica that kept them, or it is a step of an
        exchange.
      payload: of a step of an exchange that another replica has kept.
      folded_by: the replica that adds it up, where that is another one.
    """

    header: UpdateHeader
    writer: BlobWriter | None = None
    update: Update | None = None
    payload: bytes = b""
    folded_by: str | None = None

    def read(self) -> bytes:
        """Return a step's payload."""
        return self.payload if self.writer is None else bytes(self.writer.read())


def keep(disk: Disk, uploads: Sequence[Upload]) -> None:
    """Make the payloads that are not durable yet durable, together, and see that the others still are. Blocking.

    Raises:
      OSError: they cannot be, or are not.
    """
    if writers := [upload.writer for upload in uploads if upload.writer is not None]:
        disk.blobs.keep(writers)
    disk.check_kept({upload.header.update_digest for upload in uploads if upload.writer is None})


def decode_update(config: JobConfig, round_number: int, data: bytes | memoryview) -> Update:
    """Decode an update's payload.

    Raises:
      PayloadError: it is not one of the job's.
    """
    codec, kind = config.update_form(round_number)
    return get_codec(codec).decode(config.spec, data, kind=kind, local=config.local_names)

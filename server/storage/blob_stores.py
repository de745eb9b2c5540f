"""Opens the store of payloads that the settings name."""

from __future__ import annotations

from server.settings import Settings
from server.storage.blobs import LocalBlobs
from server.storage.payloads import BlobStore
from server.storage.s3_address import S3Address
from server.storage.state_folder import BLOBS_FOLDER, UPLOADS_FOLDER


def open_blobs(settings: Settings, *, is_written: bool = True) -> BlobStore:
    """Open the local folder, or the object store. Blocking.

    Args:
      settings: which name it.
      is_written: whether credentials for an object store must allow writing to it.

    Raises:
      ConfigurationError: the object store cannot be used; the message says what to do.
    """
    if not settings.blobs:
        return LocalBlobs(settings.state / BLOBS_FOLDER)
    from server.storage.s3_blobs import S3Blobs
    from server.storage.s3_bucket import Bucket

    bucket = Bucket(S3Address.parse(settings.blobs))
    bucket.open(is_written=is_written)
    return S3Blobs(bucket, settings.state / UPLOADS_FOLDER)

"""A bucket of an S3 object store: the few requests that payloads need, and what their failures mean.

Every request is tried several times, with growing waits between. Its body's SHA-256 is part of its signature, so a
server takes no bytes but those that were sent. Needs boto3, which is imported here alone, and only where a bucket is
opened.
"""

from __future__ import annotations

import contextlib
import email.utils
import errno
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from bnncore.errors import ConfigurationError
from server.storage.refusal import StoreAwayError
from server.storage.s3_address import S3Address

_T = TypeVar("_T")

PART_BYTES = 8 * 1024 * 1024
"""Longer objects are sent in parts of this length, one after the other."""

_PIECE_BYTES = 1024 * 1024
"""Of a body that is read."""
_ATTEMPTS = 4
"""Of a request, and of reading a body."""
_CONNECTIONS = 32
_HALF_SENT_S = 3600.0
"""After which an upload in parts was given up, or its process killed."""
_PROBE = "probe"
"""An object that is there for a moment at a start, maybe at several at once."""
_MISSING = ("NoSuchKey", "404")
_REFUSED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "403")


@dataclass(frozen=True)
class ObjectState:
    """What a bucket knows of an object."""

    key: str
    size: int
    """Bytes."""
    written_at: float
    """Seconds since 1970 by this machine's clock, however wrong that is."""


class Bucket:
    """Objects below a prefix of a bucket. Blocking; for any number of threads.

    Raises:
      ConfigurationError: boto3 is missing, or there is no such region.
    """

    def __init__(self, address: S3Address) -> None:
        self._address = address
        self._prefix = f"{address.prefix}/" if address.prefix else ""
        self._client = _make_client(address)

    def open(self, *, is_written: bool = True) -> None:
        """See whether the bucket can be used.

        Args:
          is_written: see by writing an empty object, and removing it, whether the credentials allow that too.

        Raises:
          ConfigurationError: it cannot; the message says what to do.
        """
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

        try:
            self._client.list_objects_v2(Bucket=self._address.bucket, Prefix=self._prefix, MaxKeys=1)
            if is_written:
                self._client.put_object(**self._place(_PROBE), Body=b"")
                self._client.delete_object(**self._place(_PROBE))
        except NoCredentialsError as error:
            raise ConfigurationError(
                f"--blobs {self._address}: there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or AWS_PROFILE"
            ) from error
        except ClientError as error:
            raise ConfigurationError(f"--blobs {self._address}: {self._advice(_code(error))} ({error})") from error
        except BotoCoreError as error:
            raise ConfigurationError(
                f"--blobs {self._address}: the object store does not answer; see whether it runs and the endpoint is "
                f"right ({error})"
            ) from error

    def check(self) -> None:
        """Ask for as little as possible; raises StoreAwayError."""
        with self._errors():
            self._client.head_bucket(Bucket=self._address.bucket)

    def put(self, key: str, size: int, read: Callable[[int, int], bytes]) -> None:
        """Make an object durable; in parts where it is long.

        Args:
          key: below the prefix.
          size: bytes.
          read: returns ``length`` bytes from ``offset`` on.
        """
        place = self._place(key)
        with self._errors():
            if size <= PART_BYTES:
                self._client.put_object(**place, Body=read(0, size))
            else:
                self._put_in_parts(place, size, read)

    def _put_in_parts(self, place: dict[str, str], size: int, read: Callable[[int, int], bytes]) -> None:
        upload = {**place, "UploadId": self._client.create_multipart_upload(**place)["UploadId"]}
        try:
            parts = []
            for number, offset in enumerate(range(0, size, PART_BYTES), start=1):
                body = read(offset, min(PART_BYTES, size - offset))
                answer = self._client.upload_part(**upload, PartNumber=number, Body=body)
                parts.append({"PartNumber": number, "ETag": answer["ETag"]})
            self._client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        except BaseException:
            with contextlib.suppress(Exception):  # what is left is removed by a later start
                self._client.abort_multipart_upload(**upload)
            raise

    def fetch(self, key: str, consume: Callable[[Iterator[bytes]], _T]) -> _T:
        """Read an object.

        Args:
          key: below the prefix.
          consume: is given the pieces, anew after the connection broke in the middle.

        Returns:
          What ``consume`` returned.

        Raises:
          FileNotFoundError: there is none.
          StoreAwayError: the store does not answer.
        """
        from botocore.exceptions import BotoCoreError

        with self._errors():
            for attempt in range(1, _ATTEMPTS + 1):
                body = self._client.get_object(**self._place(key))["Body"]
                try:
                    with contextlib.closing(body):
                        return consume(body.iter_chunks(_PIECE_BYTES))
                except BotoCoreError:
                    if attempt == _ATTEMPTS:
                        raise
                    time.sleep(0.1 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def state(self, key: str) -> ObjectState | None:
        """Return what the bucket knows of an object; None when there is none."""
        try:
            with self._errors():
                answer = self._client.head_object(**self._place(key))
        except FileNotFoundError:
            return None
        return ObjectState(key, int(answer["ContentLength"]), _here(answer["LastModified"].timestamp(), answer))

    def list(self) -> Iterator[ObjectState]:
        """List all objects below the prefix."""
        with self._errors():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._address.bucket, Prefix=self._prefix
            )
            for page in pages:
                for entry in page.get("Contents", ()):
                    written_at = _here(entry["LastModified"].timestamp(), page)
                    yield ObjectState(entry["Key"].removeprefix(self._prefix), int(entry["Size"]), written_at)

    def delete(self, key: str) -> None:
        """Remove an object if it is there."""
        with self._errors(), contextlib.suppress(FileNotFoundError):
            self._client.delete_object(**self._place(key))

    def remove_half_sent(self) -> None:
        """Give up uploads in parts that nobody goes on with: of processes that were killed long ago."""
        bucket = self._address.bucket
        with self._errors():
            pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=self._prefix)
            for page in pages:
                for upload in page.get("Uploads", ()):
                    if time.time() - _here(upload["Initiated"].timestamp(), page) > _HALF_SENT_S:
                        with contextlib.suppress(self._client.exceptions.NoSuchUpload):  # it came to its end just now
                            self._client.abort_multipart_upload(
                                Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                            )

    def url_for(self, key: str, seconds: float) -> str:
        """Return a URL at which anyone may read an object for so long; asks nobody."""
        url: str = self._client.generate_presigned_url(
            "get_object", Params=self._place(key), ExpiresIn=max(1, int(seconds))
        )
        return url

    def _place(self, key: str) -> dict[str, str]:
        return {"Bucket": self._address.bucket, "Key": self._prefix + key}

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Say what a failure means: the object is missing, or the store is away."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            if _code(error) in _MISSING:
                raise FileNotFoundError(errno.ENOENT, f"no such object in {self._address}") from error
            raise StoreAwayError(f"the object store {self._address} refuses: {error}") from error
        except BotoCoreError as error:
            raise StoreAwayError(f"the object store {self._address} does not answer: {error}") from error

    def _advice(self, code: str) -> str:
        if code in ("NoSuchBucket", "404"):
            return "there is no such bucket; create it first, such as with: aws s3 mb s3://" + self._address.bucket
        if code in _REFUSED:
            return (
                "the credentials are refused, or what was asked with them; they must be right and allow listing the "
                "bucket and reading, writing and deleting its objects"
            )
        return "the object store refuses"


def _make_client(address: S3Address) -> Any:
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise ConfigurationError(
            f"--blobs {address} needs boto3; install it with: pip install 'bitfleet[s3]'"
        ) from error
    for name in ("boto3", "botocore", "urllib3"):  # they say where credentials were found, and at DEBUG the signatures
        logging.getLogger(name).setLevel(logging.WARNING)
    config = Config(
        signature_version="s3v4",
        retries={"mode": "standard", "max_attempts": _ATTEMPTS},
        connect_timeout=5,
        read_timeout=30,
        tcp_keepalive=True,
        max_pool_connections=_CONNECTIONS,
        # Signed payloads are checked by every server; checksums beside them only by some.
        s3={"payload_signing_enabled": True, **({"addressing_style": "path"} if address.endpoint else {})},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        return boto3.session.Session().client(
            "s3", endpoint_url=address.endpoint or None, region_name=address.region or None, config=config
        )
    except (BotoCoreError, ValueError) as error:
        raise ConfigurationError(f"--blobs {address}: {error}") from error


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _here(moment: float, answer: dict[str, Any]) -> float:
    """Turn a moment of the server's clock into one of this machine's."""
    said = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    now = time.time()
    return moment if said is None else now + moment - email.utils.parsedate_to_datetime(said).timestamp()

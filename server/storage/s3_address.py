"""Where payloads are in an S3 object store: ``s3://BUCKET/PREFIX?endpoint=https://HOST:PORT&region=REGION``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl, urlsplit

from bnncore.errors import ConfigurationError

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9._/-]*")
_OPTIONS = ("endpoint", "region")


@dataclass(frozen=True)
class S3Address:
    """A prefix in a bucket.

    Attributes:
      prefix: without slashes at its ends; may be empty.
      endpoint: URL of the server; empty = Amazon's, or what the AWS environment and profile say.
      region: empty = what they say.
    """

    bucket: str
    prefix: str
    endpoint: str = ""
    region: str = ""

    @classmethod
    def parse(cls, text: str) -> S3Address:
        """Read a URL.

        Raises:
          ConfigurationError: it is something else, or has credentials in it, which the message does not repeat.
        """
        parts = _split("--blobs", text)
        if "@" in parts.netloc:
            raise ConfigurationError(
                "--blobs must not hold credentials: give them by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a "
                "profile"
            )
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        unknown = sorted(options.keys() - set(_OPTIONS))
        prefix = parts.path.strip("/")
        if parts.scheme != "s3" or not _BUCKET.fullmatch(parts.netloc) or not _PREFIX.fullmatch(prefix):
            raise ConfigurationError(
                f"--blobs must be s3://BUCKET/PREFIX, e.g. s3://models/fleet, got {parts.scheme}://{parts.netloc}"
                f"{parts.path}"
            )
        if unknown or parts.fragment:
            raise ConfigurationError(f"--blobs knows the options {', '.join(_OPTIONS)}, got {', '.join(unknown)}")
        endpoint = options.get("endpoint", "")
        if "@" in endpoint:  # first: what follows repeats it
            raise ConfigurationError("the endpoint of --blobs must not hold credentials")
        server = _split("the endpoint of --blobs", endpoint)
        if endpoint and (server.scheme not in ("http", "https") or not server.hostname):
            raise ConfigurationError(f"the endpoint of --blobs must be http(s)://HOST:PORT, got {endpoint!r}")
        return cls(parts.netloc, prefix, endpoint.rstrip("/"), options.get("region", ""))

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}" + (f" at {self.endpoint}" if self.endpoint else "")


def _split(what: str, url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise ConfigurationError(f"{what} is malformed: {error}") from None

"""Asks the coordinator over HTTPS, knowing it by one certificate and by nothing else: for enrolment and renewal.

A device without a clock battery may wake up in another year, when every certificate seems not to be valid yet. The
coordinator's own clock (the ``Date`` of its answer, over a connection on which all but the dates was checked) tells
the two apart: then it is the clock that is wrong.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import http.client
import json
import re
import ssl
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from bnncore.errors import ProtocolError, UnreachableError
from edge_client.errors import ClockError, IdentityRefusedError, SettingsError, one_line
from edge_client.records import read_json

__all__ = ["Coordinator", "check_fingerprint", "fetch_ca"]

TIMEOUT_S = 20.0
_NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python's ssl has no name for."""
_DATES = (9, 10)
"""OpenSSL's codes of a certificate that is not yet valid, and of one that has expired."""
_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")
_MAX_ANSWER_BYTES = 1 << 20


@dataclass(frozen=True)
class Answer:
    """An answer: its JSON, and when the coordinator gave it (seconds since 1970, on its own clock)."""

    value: Any
    at: float


class Coordinator:
    """The coordinator's REST side.

    Args:
      url: ``https://HOST:PORT``.
      ca_pem: the certificate by which it is known.

    Raises:
      SettingsError: the URL is none.
    """

    def __init__(self, url: str, ca_pem: bytes) -> None:
        self.url = url
        self.host, self._port = read_url(url)
        self._ca_pem = ca_pem.decode()

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Answer:
        """Ask, and give the answer.

        Raises:
          ClockError: this device's clock is wrong.
          UnreachableError: nobody answers, or another than the one that the certificate is of.
          IdentityRefusedError: the coordinator refuses, and why.
        """
        try:
            return self._exchange(self._context(), method, path, body)
        except ssl.SSLCertVerificationError as error:
            if error.verify_code in _DATES:
                self._blame_the_clock(error)
            raise UnreachableError(
                f"{self.url} does not show a certificate of the coordinator that this device knows, for this name: "
                f"{error.verify_message}"
            ) from error

    def clock_offset_s(self) -> float:
        """Measure how far this device's clock is ahead of the coordinator's, in seconds; dates are not checked."""
        context = self._context()
        context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)
        return time.time() - self._exchange(context, "GET", "/healthz", None).at

    def _blame_the_clock(self, error: ssl.SSLCertVerificationError) -> None:
        offset_s = self.clock_offset_s()
        if abs(offset_s) > 60:
            raise ClockError(offset_s) from error
        raise UnreachableError(
            f"the coordinator's certificate at {self.url} is out of date: {error.verify_message}; it makes a new one "
            "when it is started again"
        ) from error

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cadata=self._ca_pem)
        return context

    def _exchange(self, context: ssl.SSLContext, method: str, path: str, body: dict[str, Any] | None) -> Answer:
        return exchange(self.host, self._port, context, method, path, body)


def exchange(
    host: str, port: int, context: ssl.SSLContext, method: str, path: str, body: dict[str, Any] | None
) -> Answer:
    """Ask once; see ``Coordinator.ask``."""
    connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
    with contextlib.closing(connection):
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, path, body=data, headers={"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read(_MAX_ANSWER_BYTES)
        except ssl.SSLCertVerificationError:
            raise
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(
                f"no answer from https://{host}:{port} ({error}); is the coordinator running, and is --server right?"
            ) from error
    return read_answer(response.status, response.getheader("Date", ""), content)


def read_answer(status: int, date: str, content: bytes) -> Answer:
    """Read an answer; see ``Coordinator.ask``.

    Args:
      status: of HTTP.
      date: when it was given, as HTTP writes times.
      content: JSON, or nothing.

    Raises:
      ProtocolError: it does not say when it was given.
      UnreachableError, IdentityRefusedError: it says no.
    """
    try:
        at = email.utils.mktime_tz(email.utils.parsedate_tz(date))  # type: ignore[arg-type]
    except (ValueError, TypeError, OverflowError):
        raise ProtocolError("the other end does not say what time it is; is it a bitfleet coordinator?") from None
    value = _json(content)
    if status >= 500 or status == http.HTTPStatus.TOO_MANY_REQUESTS:
        raise UnreachableError(f"the coordinator cannot answer now ({status}): {_detail(value)}")
    if status >= 400:
        raise IdentityRefusedError(_detail(value))
    return Answer(value, at)


def fetch_ca(url: str, fingerprint: str) -> tuple[bytes, int]:
    """Fetch the coordinator's certificate and check it against its fingerprint; nothing secret is sent before that.

    Returns:
      The certificate (PEM), and the port where devices connect.

    Raises:
      SettingsError: the fingerprint or the URL is malformed, or the certificate has another fingerprint.
      UnreachableError: nobody answers.
    """
    check_fingerprint(fingerprint)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # who it is shows in what it says, below
    answer = exchange(*read_url(url), context, "GET", "/api/v1/enrolments", None).value
    return read_enrolment(answer, url, fingerprint)


def read_enrolment(answer: Any, url: str, fingerprint: str) -> tuple[bytes, int]:
    """Read what a coordinator says of itself; see ``fetch_ca``."""
    try:
        ca_pem, port = answer["ca_pem"], int(answer["grpc_port"])
        found = f"sha256:{hashlib.sha256(ssl.PEM_cert_to_DER_cert(ca_pem)).hexdigest()}"
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ProtocolError(f"{url} is no coordinator that devices enrol at: {error}") from error
    if found != fingerprint:
        raise SettingsError(
            f"the coordinator at {url} has the fingerprint {found}, --ca-fingerprint says {fingerprint}: either it is "
            "another coordinator, or somebody stands between. The coordinator prints its own when it starts"
        )
    return ca_pem.encode(), port


def check_fingerprint(fingerprint: str) -> None:
    """Raise SettingsError unless it is ``sha256:`` and 64 hex digits."""
    if _FINGERPRINT.fullmatch(fingerprint) is None:
        raise SettingsError(f"--ca-fingerprint must be sha256: and 64 hex digits, got {fingerprint!r:.90}")


def read_url(url: str) -> tuple[str, int]:
    """Take ``https://HOST[:PORT]`` apart; raises SettingsError when it is something else."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 443
    except ValueError:
        host, port = None, 0
    if host is None or parts.scheme != "https" or parts.path not in ("", "/") or parts.query:
        raise SettingsError(f"--server must be https://HOST:PORT, as the coordinator prints it, got {url!r}")
    return host, port


def _json(content: bytes) -> Any:
    try:
        return read_json(content) if content else None
    except ValueError:
        return None


def _detail(value: Any) -> str:
    if isinstance(value, dict) and "detail" in value:
        return one_line(str(value["detail"]))
    return "it gave no reason; is it a bitfleet coordinator?"

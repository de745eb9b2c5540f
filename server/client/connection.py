"""A connection to a coordinator: where it is, by what it is known, with which key; and its errors as exceptions."""

from __future__ import annotations

import contextlib
import random
import ssl
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import httpx

from bnncore.errors import BitfleetError, ConfigurationError, UnreachableError
from server.coordinator.job_state import RESULTS

_TIMEOUT_S = 60.0
_PAUSES_S = (0.5, 1.0, 2.0, 4.0)
"""Before a request is sent again: another coordinator leads within seconds."""
_AWAY = (502, 503, 504)
"""Statuses of HTTP that say that there is nobody to ask at the moment."""


class RequestError(BitfleetError):
    """The coordinator answered with a problem.

    Attributes:
      status: of HTTP.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def path_of(*parts: str | int) -> str:
    """Return the path of a thing below ``/api/v1``, one segment a part: what is in an id never leads elsewhere.

    Raises:
      ConfigurationError: a part is empty.
    """
    if "" in parts:
        raise ConfigurationError(f"an id is empty, in /{'/'.join(map(str, parts))}")
    return "".join(f"/{_segment(str(part))}" for part in parts)


def _segment(part: str) -> str:
    # Dots alone mean other folders (RFC 3986, 5.2.4), and are left as they are by quote().
    return part.replace(".", "%2E") if part in (".", "..") else urllib.parse.quote(part, safe="")


class Connection:
    """Asks one coordinator. A context manager.

    Args:
      url: such as ``https://127.0.0.1:8080``.
      key: to the API; None where the coordinator asks for none.
      ca_pem: the certificate by which it is known; None: one of those that this machine trusts.

    Raises:
      ConfigurationError: the key would be sent in the clear, or the certificate is none.
    """

    def __init__(self, url: str, *, key: str | None = None, ca_pem: str | None = None) -> None:
        if key is not None and not url.startswith("https://"):
            raise ConfigurationError(f"a key is sent over https only, the coordinator's URL is {url!r}")
        self.url = url.rstrip("/")
        try:
            context = ssl.create_default_context(cadata=ca_pem)
        except ssl.SSLError as error:
            raise ConfigurationError(f"the coordinator's certificate (--ca) must be one in PEM: {error}") from error
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._http = httpx.Client(verify=context, timeout=_TIMEOUT_S, headers=headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it."""
        self._http.close()

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Ask.

        Args:
          method: of HTTP.
          path: below ``/api/v1``; see ``path_of``.
          options: httpx's.

        Raises:
          ConfigurationError: the address makes no sense.
          UnreachableError: nobody answered, or not the one that the certificate is of.
          RequestError: the coordinator refused, and why; or something else answered.
        """
        with self._told():
            response = self._http.request(method, f"{self.url}/api/v1{path}", **options)
        _check(response)
        return response

    def json(self, method: str, path: str, **options: Any) -> Any:
        """Ask, and return the JSON answer, None when it is empty; see ``request``."""
        answer = self.request(method, path, **options)
        return _read(answer) if answer.content else None

    def make(self, path: str, body: Any) -> Any:
        """Ask for something to be made, and return the JSON answer; see ``request``.

        While no answer says whether it was made, the request is sent again, under the key that it had before: so it is
        made once.
        """
        headers = {"Idempotency-Key": f'"{uuid.uuid4()}"'}
        return self._insist(lambda is_repeated: self.json("POST", path, json=body, headers=headers))

    def change_job(self, job_id: str, change: str) -> Any:
        """Cancel, pause or resume a job, and return it; see ``request``.

        While no answer says whether that was done, the request is sent again; one that was done is not refused then.
        """
        path = path_of("jobs", job_id)

        def ask(is_repeated: bool) -> Any:
            try:
                return self.json("POST", f"{path}/{change}")
            except RequestError as error:
                if is_repeated and error.status == 409:
                    job = self.json("GET", path)
                    if job["state"] in RESULTS[change]:
                        return job
                raise

        return self._insist(ask)

    def _insist(self, ask: Callable[[bool], Any]) -> Any:
        """Ask until there is an answer, or for so long; ``ask`` is told whether it was called before."""
        ends_at, pauses = time.monotonic() + _TIMEOUT_S, iter(_PAUSES_S)
        is_first = True
        while True:
            try:
                return ask(not is_first)
            except (UnreachableError, RequestError) as error:
                is_away = error.status in _AWAY if isinstance(error, RequestError) else True
                is_nowhere = is_first and isinstance(error.__cause__, httpx.ConnectError)
                pause_s = next(pauses, None)
                if not is_away or is_nowhere or pause_s is None or time.monotonic() > ends_at:
                    raise
            is_first = False
            time.sleep(pause_s * random.uniform(0.5, 1.0))

    def entries(self, path: str, params: Mapping[str, Any] | None = None) -> Iterator[Any]:
        """Yield the entries of a list, page after page; see ``request``."""
        given = {name: value for name, value in (params or {}).items() if value is not None}
        answer = self.request("GET", path, params=given)
        yield from _read(answer)
        while "next" in answer.links:
            with self._told():
                answer = self._http.get(httpx.URL(self.url).join(answer.links["next"]["url"]))
            _check(answer)
            yield from _read(answer)

    @contextlib.contextmanager
    def stream(self, path: str, **options: Any) -> Iterator[httpx.Response]:
        """Ask for an answer that is read as it comes, in the block; see ``request``."""
        with self._told(), self._http.stream("GET", f"{self.url}/api/v1{path}", **options) as response:
            if not response.is_success:
                response.read()
            _check(response)
            yield response

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise ConfigurationError(
                f"the coordinator's URL (--server) {self.url!r} must be one such as https://127.0.0.1:8080"
            ) from error
        except httpx.HTTPError as error:
            raise UnreachableError(
                f"no answer from {self.url} ({error}); is the coordinator running, are --server and --ca right?"
            ) from error


def _check(response: httpx.Response) -> None:
    if not response.is_success:
        raise RequestError(_detail(response), response.status_code)


def _read(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError as error:
        message = f"{response.request.url} answered with what is no JSON; is it a bitfleet coordinator?"
        raise RequestError(message, response.status_code) from error


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{response.request.url} answered {response.status_code}; is it a bitfleet coordinator?"

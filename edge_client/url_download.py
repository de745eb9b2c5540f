"""Reads a payload at a URL that the coordinator gave with a task: from the fleet's object store, past the coordinator.

A device asks there for bytes and says nothing of itself beyond its address. It does so over TLS alone, from a server
whose certificate the system's authorities (or those of ``SSL_CERT_FILE``) have signed, and follows no redirection: of
whatever else a coordinator names, such as what is in its owner's house, it asks nothing; it begins a handshake of TLS
there and goes. In the clear it asks this machine alone, where the coordinator itself is spoken to in the clear.
Whatever fails, the coordinator has the payload too.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncGenerator, Callable, Iterator
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import SplitResult, urlsplit

from edge_client.errors import LinkError, one_line

__all__ = ["url_pieces"]

_TIMEOUT_S = 30.0
"""Of silence."""
_PIECE_BYTES = 1 << 16
_MOST_URL_BYTES = 8192


async def url_pieces(
    url: str, offset: int, *, in_clear: bool, count: Callable[[int], None]
) -> AsyncGenerator[bytes, None]:
    """Give the bytes at a URL from an offset on, piece by piece.

    Args:
      url: as the task has it.
      offset: of the first byte that is wanted.
      in_clear: whether this machine may be asked without TLS.
      count: told the bytes of the request.

    Raises:
      LinkError: they cannot be had there; what was given so far is as good as the digest will say.
    """
    parts = _checked(url, in_clear=in_clear)
    connection = _connection(parts)
    try:
        with _link_errors(parts):
            response = await asyncio.to_thread(_ask, connection, parts, offset, count)
            while piece := await asyncio.to_thread(response.read1, _PIECE_BYTES):
                yield piece
    finally:
        if connection.sock is not None:  # wakes a thread that waits for it
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()


def _checked(url: str, *, in_clear: bool) -> SplitResult:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise LinkError(f"the task's URL of the payload is malformed: {error}") from error
    if len(url) > _MOST_URL_BYTES or not url.isascii() or not url.isprintable() or " " in url or not host:
        raise LinkError("the task's URL of the payload is malformed")
    if parts.scheme != "https" and not (parts.scheme == "http" and in_clear and _is_this_machine(host)):
        raise LinkError(f"the task's URL of the payload must be https://, it is {one_line(parts.scheme)}://")
    return parts


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _connection(parts: SplitResult) -> HTTPConnection:
    assert parts.hostname is not None
    if parts.scheme == "http":
        return HTTPConnection(parts.hostname, parts.port, timeout=_TIMEOUT_S)
    return HTTPSConnection(parts.hostname, parts.port, timeout=_TIMEOUT_S)  # verifies by default


def _ask(connection: HTTPConnection, parts: SplitResult, offset: int, count: Callable[[int], None]) -> HTTPResponse:
    target = f"{parts.path or '/'}?{parts.query}"
    head = {"Host": parts.netloc, "Accept-Encoding": "identity", "Range": f"bytes={offset}-"}
    connection.connect()
    connection.request("GET", target, headers=head)
    count(len(f"GET {target} HTTP/1.1\r\n\r\n") + sum(len(f"{name}: {value}\r\n") for name, value in head.items()))
    response = connection.getresponse()
    begins_there = response.status == 206 and (response.getheader("Content-Range") or "").startswith(f"bytes {offset}-")
    if not begins_there and not (response.status == 200 and offset == 0):
        raise LinkError(f"the object store at {parts.netloc} answered {response.status} {one_line(response.reason)}")
    return response


@contextlib.contextmanager
def _link_errors(parts: SplitResult) -> Iterator[None]:
    try:
        yield
    except (HTTPException, OSError, ValueError) as error:  # a bad certificate is an OSError
        raise LinkError(f"the object store at {parts.netloc} cannot be read: {one_line(str(error))}") from error

"""The port of people and tools, from raw sockets over TLS: whatever a peer drags out or piles up has an end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest

from server.dashboard.assets import asset
from server.limits import ConnectionLimits
from tests.patience import LIMIT_S, patiently, until
from tests.server.conftest import patient_connections
from tests.server.identity.house import SecureHouse, open_secure_house

_SOON = ConnectionLimits(request_timeout_s=0.5, idle_timeout_s=1.0)

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def connection(house: SecureHouse, *, is_shaken: bool = True) -> AsyncIterator[Connection]:
    """Open a connection; without its handshake where not ``is_shaken``."""
    if is_shaken:
        reader, writer = await shake_hands(house)
    else:
        reader, writer = await asyncio.open_connection(house.http.host, house.http.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def shake_hands(house: SecureHouse, *, buffer_bytes: int | None = None) -> Connection:
    """Open a connection; again where this machine took longer for the handshake than there is time."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            plain = socket.socket()
            if buffer_bytes is not None:
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
            plain.setblocking(False)
            try:
                await asyncio.get_running_loop().sock_connect(plain, (house.http.host, house.http.port))
                return await asyncio.open_connection(sock=plain, ssl=house.context(), server_hostname="localhost")
            except OSError:
                plain.close()


@contextlib.asynccontextmanager
async def answered(house: SecureHouse) -> AsyncIterator[Connection]:
    """Open a connection on which a request was answered; again where this machine was too slow for it."""
    async with asyncio.timeout(LIMIT_S), contextlib.AsyncExitStack() as stack:
        while True:
            reader, writer = await stack.enter_async_context(connection(house))
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                assert (await answer(reader))[0] == 200
                break
        yield reader, writer


async def is_ended(reader: asyncio.StreamReader) -> bool:
    """Wait for the other side to end a connection; gives whether it did without a word."""
    try:
        return await patiently(reader.read()) == b""
    except ConnectionError:
        return True


async def answer(reader: asyncio.StreamReader) -> tuple[int, str, bytes]:
    """Read an answer: status, content type, body."""
    head = (await patiently(reader.readuntil(b"\r\n\r\n"))).decode()
    headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
    body = await reader.readexactly(int(headers["content-length"]))
    return int(head.split()[1]), headers["content-type"], body


async def nothing_is_left(house: SecureHouse, others: int) -> None:
    """Wait until no place is taken but those of the clients that the house itself keeps open."""
    await until(lambda: house.listener.num_connections <= others)


@pytest.fixture
async def hasty(tmp_path: Path) -> AsyncIterator[SecureHouse]:
    async with open_secure_house(tmp_path / "state", connections=_SOON) as house:
        yield house


async def test_a_handshake_that_never_ends_is_cut(hasty: SecureHouse) -> None:
    async with connection(hasty, is_shaken=False) as (reader, _):
        assert await is_ended(reader)
        await nothing_is_left(hasty, 0)


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"GET /heal",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n",
        b"POST /api/v1/enrolments HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
        b"POST /api/v1/enrolments HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
    ],
    ids=["nothing", "a line", "headers", "a body", "a chunked body"],
)
async def test_a_request_that_does_not_come_to_its_end_is_cut(hasty: SecureHouse, beginning: bytes) -> None:
    async with connection(hasty) as (reader, writer):
        writer.write(beginning)

        assert await is_ended(reader)
        await nothing_is_left(hasty, 0)


async def test_a_request_that_trickles_is_cut(hasty: SecureHouse) -> None:
    async with connection(hasty) as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\nX: ")
        ended = asyncio.create_task(is_ended(reader))
        with contextlib.suppress(ConnectionError):
            while not ended.done():
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.02)

        assert await ended


async def test_a_second_request_has_a_time_of_its_own(hasty: SecureHouse) -> None:
    async with answered(hasty) as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\n")

        assert await is_ended(reader)


async def test_a_connection_on_which_nothing_is_asked_is_closed(hasty: SecureHouse) -> None:
    async with answered(hasty) as (reader, _):
        assert await is_ended(reader)
        await nothing_is_left(hasty, 0)


# Something that is large and open to everybody.
_ASKING = f"GET {asset('page.css').url} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
_LAST_WORDS = asset("page.css").path.read_bytes()[-60:]


async def test_an_answer_that_nobody_reads_is_cut(hasty: SecureHouse) -> None:
    _, writer = await shake_hands(hasty, buffer_bytes=4096)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(_ASKING * 800)
    await nothing_is_left(hasty, 0)
    writer.transport.abort()


def read_slowly(house: SecureHouse, requests: int) -> tuple[int, float]:
    """Ask so often at once and read the answers bit by bit. Blocking, with next to no buffers.

    Returns:
      How many answers came, and the longest time between two reads.
    """
    reads = [time.monotonic()]
    with socket.socket() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.connect((house.http.host, house.http.port))
        with house.context().wrap_socket(plain, server_hostname="localhost") as connection:
            connection.sendall(_ASKING * requests)
            read = b""
            while read.count(_LAST_WORDS) < requests and (piece := connection.recv(4096)):
                read += piece
                reads.append(time.monotonic())
                time.sleep(0.02)
    return read.count(_LAST_WORDS), max(after - before for before, after in pairwise([*reads, time.monotonic()]))


async def test_an_answer_that_is_read_slowly_is_read_to_its_end(tmp_path: Path) -> None:
    limits = ConnectionLimits(request_timeout_s=1.0)
    async with open_secure_house(tmp_path / "state", connections=limits) as house:
        house.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # so that the system keeps little for us

        while True:
            num_read, longest_s = 0, limits.request_timeout_s
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                num_read, longest_s = await asyncio.to_thread(read_slowly, house, 70)
            if num_read == 70 or longest_s < limits.request_timeout_s / 2:  # otherwise this machine was the slow one
                break

    assert num_read == 70


async def test_headers_that_are_too_large_are_a_problem(house: SecureHouse) -> None:
    async with connection(house) as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20_000)
        status, kind, body = await answer(reader)

    assert (status, kind) == (400, "application/problem+json")
    assert "16384 bytes" in json.loads(body)["detail"]


@pytest.mark.parametrize("is_told", [True, False])
async def test_a_body_that_is_too_large_is_refused_unread(house: SecureHouse, is_told: bool) -> None:
    async with connection(house) as (reader, writer):
        length = b"Content-Length: 2000000" if is_told else b"Transfer-Encoding: chunked"
        writer.write(
            b"POST /api/v1/enrolments HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            + length
            + b"\r\n\r\n"
        )
        with contextlib.suppress(ConnectionError):
            for _ in range(0 if is_told else 20):
                writer.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
                await writer.drain()
        status, kind, _ = await answer(reader)

    assert (status, kind) == (413, "application/problem+json")


async def test_so_many_connections_are_taken_from_one_address_and_their_places_come_back(tmp_path: Path) -> None:
    few = patient_connections(max_connections=50, max_connections_per_address=3)
    async with open_secure_house(tmp_path / "state", connections=few) as house:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(connection(house))
            with pytest.raises((ConnectionError, OSError)):
                await asyncio.open_connection(house.http.host, house.http.port, ssl=house.context())
            assert house.listener.num_connections == 3
        await nothing_is_left(house, 0)

        assert (await house.stranger.get("/healthz")).text == "ok"


async def test_so_many_connections_are_taken_in_all(tmp_path: Path) -> None:
    few = patient_connections(max_connections=2, max_connections_per_address=2)
    async with open_secure_house(tmp_path / "state", connections=few) as house, contextlib.AsyncExitStack() as stack:
        for _ in range(2):  # not even a handshake is needed to take a place
            await stack.enter_async_context(connection(house, is_shaken=False))
        await until(lambda: house.listener.num_connections == 2)
        with pytest.raises((ConnectionError, OSError)):
            await asyncio.open_connection(house.http.host, house.http.port, ssl=house.context())


async def test_where_a_request_came_from_is_not_by_its_own_word(house: SecureHouse) -> None:
    await house.admin.post("/api/v1/keys", json={"name": "k", "scope": "read"}, headers={"X-Forwarded-For": "8.8.8.8"})

    assert {entry["origin"] for entry in await house.audit()} <= {"", "127.0.0.1"}

"""Messages between replicas, carried by PostgreSQL's NOTIFY: no table, nothing is asked again and again.

PostgreSQL hands all messages to everyone in one order, that of their transactions, also to who sent them. It hands them
to who listens at that moment: while a replica is without its connections it hears nothing, and what it tells goes
nowhere. So whoever keeps what others told asks for all of it anew in ``on_connect``, and who keeps nothing for others
needs no more than the errors of ``ask``. A database that hangs counts as one that is away: when it takes nothing for
long, or too much waits for it, the connections are given up with what waits for them.

A NOTIFY payload is a head and a piece of a message::

    SENDER NUMBER INDEX COUNT TEXT      the message's number at its sender; which piece of how many; JSON in ASCII

The database itself announces changes (``server.storage.announcements``): they come as messages of sender "".

Messages that wait are sent by one statement, so there are fewer statements than messages the more there is to say. A
sender's messages come in the order of their numbers: what was given up and arrives after all, later than a newer one,
counts as lost.

For one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import random
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.conninfo import make_conninfo

from server.errors import NotReadyError, ServerError
from server.replicas.names import application_name
from server.replicas.outbox import Outbox
from server.replicas.wire import error_from_json, error_to_json
from server.storage.announcements import CHANNEL
from server.storage.schema import SAY_IN_USE, newest_revision

_log = logging.getLogger(__name__)

Body = dict[str, Any]
Handler = Callable[[str, Body], None]
"""Called with the sender's id and the message; it must not block."""
Answerer = Callable[[str, Body], Awaitable[Body]]

_HANGS_S = 30.0
"""After which a database that does not answer is taken to be away."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0
"""Between two tries to connect again."""

_LAST_WORDS_S = 2.0
"""For what is told just before the end."""

_NOTIFY = "SELECT pg_notify(channel, payload) FROM unnest(%b::text[], %b::text[]) AS waiting (channel, payload)"
_EVERYONE = "bitfleet"

CONNECTION = {
    "connect_timeout": "10",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
"""A database that is cut off is noticed in seconds."""


class Bus:
    """One replica's end of it; ``async with`` connects, and connects again for as long as the block lasts.

    Args:
      replica_id: this replica's name, without spaces.
      conninfo: libpq's connection string.

    Attributes:
      find_lead: names the replica that ``"lead"`` means now; None: there is none.
      num_sent: messages that were sent.
      num_statements: by which they were.
      num_dropped: messages that were told while the database took none, or that still waited when it was lost.
    """

    def __init__(self, replica_id: str, conninfo: str) -> None:
        self.id = replica_id
        self.find_lead: Callable[[], str | None] = lambda: None
        self.num_sent = 0
        self.num_statements = 0
        self.num_dropped = 0
        self._conninfo = make_conninfo(conninfo, application_name=application_name(replica_id), **CONNECTION)
        self._handlers: dict[str, list[tuple[Handler, bool]]] = {}
        self._answerers: dict[str, Answerer] = {}
        self._on_connect: list[Callable[[], None]] = []
        self._outbox = Outbox(replica_id)
        self._connected = asyncio.Event()
        self._is_cut = asyncio.Event()
        self._last_number = 0
        self._asked: dict[int, tuple[str, asyncio.Future[Body]]] = {}
        """Whom, and for what is waited, by the question's number."""
        self._pieces: dict[str, tuple[int, list[str]]] = {}
        """Of each sender its newest message's number, and what has come of it while it is not whole."""
        self._answering: set[asyncio.Task[None]] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._is_left = False
        self._sender: AsyncConnection[Any] | None = None

    async def __aenter__(self) -> Bus:
        self._keeper = asyncio.create_task(self._keep_connected(), name="bus")
        try:
            await self._connected.wait()
        except asyncio.CancelledError:  # of who enters, while the database is away
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await self._outbox.wait_until_told()
        self._is_left = True
        tasks = [*self._answering, *([] if self._keeper is None else [self._keeper])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def is_connected(self) -> bool:
        """Whether others can be told something."""
        return self._connected.is_set()

    def on_connect(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` whenever connections were made, and once now if there are some: others are to be told."""
        self._on_connect.append(callback)
        if self.is_connected:
            callback()

    def on(self, kind: str, handler: Handler, *, echo: bool = False) -> None:
        """Call ``handler`` with every message of a kind; with ``echo`` also with those that went from here to all."""
        self._handlers.setdefault(kind, []).append((handler, echo))

    def answer(self, kind: str, handler: Answerer) -> None:
        """Answer questions of a kind; what ``handler`` raises is raised where it was asked."""
        if kind in self._answerers:
            raise ValueError(f"questions of kind {kind!r} are answered already")
        self._answerers[kind] = handler

    def tell(self, to: str | None, kind: str, body: Body) -> None:
        """Tell a replica, or all others (None), something; it is lost when they, or this one, are cut off.

        Args:
          to: a replica's id, or ``"lead"``.
          kind: names the message.
          body: what JSON holds.
        """
        to = self.find_lead() if to == "lead" else to or ""
        if to == self.id:
            asyncio.get_running_loop().call_soon(self._hand_out, self.id, kind, body)
        elif to is not None:
            self._send(to, {"kind": kind, "body": body})

    async def ask(self, to: str, kind: str, body: Body, timeout_s: float = 10.0) -> Body:
        """Ask a replica something.

        Args:
          to: a replica's id, or ``"lead"``.
          kind: names the question.
          body: what JSON holds.
          timeout_s: how long to wait for the answer.

        Raises:
          ServerError: what the other side raised.
          NotReadyError: there is nobody to ask, or no answer in time.
        """
        asked = self.find_lead() if to == "lead" else to
        if asked is None:
            raise NotReadyError("no replica leads at the moment; try again")
        if asked == self.id:
            return await self._answerer(kind)(self.id, body)
        if not self.is_connected:
            raise NotReadyError("this replica is without its database; try again in a moment")
        answer: asyncio.Future[Body] = asyncio.get_running_loop().create_future()
        number = self._send(asked, {"kind": kind, "body": body, "is_question": True})
        self._asked[number] = asked, answer
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise NotReadyError(f"replica {asked} did not answer within {timeout_s:g} s; try again") from None
        finally:
            del self._asked[number]

    def forget(self, replica_id: str) -> None:
        """Expect nothing any more from a replica that is gone."""
        self._pieces.pop(replica_id, None)
        self.fail_questions(f"replica {replica_id} is gone; try again", to=replica_id)

    def fail_questions(self, reason: str, *, to: str | None = None) -> None:
        """Wait no longer for what a replica, or anybody, was asked: whoever asked gets a NotReadyError."""
        for asked, answer in self._asked.values():
            if to in (None, asked) and not answer.done():
                answer.set_exception(NotReadyError(reason))

    async def query(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """Ask the database something, over the connection that messages are sent by.

        Raises:
          NotReadyError: it is away.
        """
        if self._sender is None:
            raise NotReadyError("this replica is without its database; try again in a moment")
        try:
            with _in_time(self._sender):
                return await (await self._sender.execute(statement, values)).fetchall()
        except psycopg.Error as error:
            raise NotReadyError(f"the database does not answer: {error}") from error

    def connect_again(self) -> None:
        """Let go of the connections, with all that waits in them, and make new ones."""
        self._is_cut.set()

    # Sending

    def _send(self, to: str, message: dict[str, Any]) -> int:
        """Queue a message for a replica, or for all when ``to`` is empty; returns its number."""
        self._last_number += 1
        if self.is_connected and self._outbox.is_full and not self._is_cut.is_set():
            _log.error("event=bus_full replica=%s waiting_bytes=%d", self.id, self._outbox.num_bytes)
            self.connect_again()
        if self.is_connected and not self._is_cut.is_set():
            self._outbox.put(_channel_of(to) if to else _EVERYONE, self._last_number, message)
            self.num_sent += 1
        else:
            self.num_dropped += 1
        return self._last_number

    async def _send_waiting(self, connection: AsyncConnection[Any]) -> None:
        while True:
            pieces = await self._outbox.take()
            with _in_time(connection):
                channels, payloads = [piece.channel for piece in pieces], [piece.payload for piece in pieces]
                await connection.execute(_NOTIFY, (channels, payloads))
            self.num_statements += 1
            self._outbox.told()

    # Receiving

    async def _receive(self, connection: AsyncConnection[Any]) -> None:
        async for notification in connection.notifies():
            try:
                if notification.channel == CHANNEL:
                    announced = json.loads(notification.payload)
                    self._hand_out("", announced["kind"], announced["body"])
                else:
                    self._take_in(notification.payload)
            except (ValueError, KeyError, TypeError) as error:  # whoever uses the database may notify
                _log.warning("event=message_malformed channel=%s reason=%r", notification.channel, str(error))
        raise psycopg.OperationalError("the connection that listens has ended")

    def _take_in(self, payload: str) -> None:
        sender, *numbers, text = payload.split(" ", 4)
        number, index, count = (int(one) for one in numbers)
        newest, pieces = self._pieces.get(sender, (0, []))
        if index == 0 and number > newest:  # what is left of an earlier one never becomes whole
            newest, pieces = self._pieces[sender] = number, []
        if number != newest or len(pieces) != index:
            return  # its beginning was told before this replica listened, or it is late
        pieces.append(text)
        if len(pieces) == count:
            self._pieces[sender] = number, []
            self._understand(sender, number, json.loads("".join(pieces)))

    def _understand(self, sender: str, number: int, message: dict[str, Any]) -> None:
        if "answers" in message:
            _, answer = self._asked.get(message["answers"], (None, None))
            if answer is not None and not answer.done():
                if "error" in message:
                    answer.set_exception(error_from_json(message["error"]))
                else:
                    answer.set_result(message["body"])
        elif "is_question" in message:
            task = asyncio.create_task(self._answer(sender, number, message["kind"], message["body"]))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
        else:
            self._hand_out(sender, message["kind"], message["body"], is_echo=sender == self.id)

    def _hand_out(self, sender: str, kind: str, body: Body, *, is_echo: bool = False) -> None:
        for handler, wants_echo in self._handlers.get(kind, ()):
            if is_echo and not wants_echo:
                continue
            try:
                handler(sender, body)
            except Exception:  # noqa: BLE001 - of one message, which is logged; the others are to be heard
                _log.exception("event=message_failed kind=%s sender=%s", kind, sender)

    async def _answer(self, sender: str, number: int, kind: str, body: Body) -> None:
        reply: dict[str, Any] = {"answers": number}
        try:
            reply["body"] = await self._answerer(kind)(sender, body)
        except Exception as error:  # noqa: BLE001 - whoever asks gets an answer whatever happens
            if not isinstance(error, ServerError):
                _log.exception("event=question_failed kind=%s sender=%s", kind, sender)
            reply["error"] = error_to_json(error)
        self._send(sender, reply)

    def _answerer(self, kind: str) -> Answerer:
        if kind not in self._answerers:  # of an older version, or it is not ready yet
            raise NotReadyError(f"replica {self.id} answers no question of kind {kind!r}; try again")
        return self._answerers[kind]

    # Connections

    async def _keep_connected(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                async with contextlib.AsyncExitStack() as stack:
                    listener = await stack.enter_async_context(await self._connect())
                    sender = await stack.enter_async_context(await self._connect())
                    for channel in (_EVERYONE, CHANNEL, _channel_of(self.id)):
                        await listener.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
                    await sender.execute("SET synchronous_commit = off")
                    await sender.execute(SAY_IN_USE, (newest_revision(),))
                    pause_s = _FIRST_PAUSE_S
                    self._begin(sender)
                    async with asyncio.TaskGroup() as tasks:
                        tasks.create_task(self._receive(listener))
                        tasks.create_task(self._send_waiting(sender))
                        tasks.create_task(self._cut_when_asked(listener, sender))
            except* (psycopg.Error, OSError) as lost:
                _log.warning("event=bus_lost next_try_s=%.2f reason=%r", pause_s, first_line(lost.exceptions[0]))
            except* Exception:  # noqa: BLE001 - whatever it was, it is logged, and connections are made again
                _log.exception("event=bus_failed replica=%s next_try_s=%.2f", self.id, pause_s)
            finally:
                self._end()
            if self._is_left:  # its cancellation is lost where a connection's loss leaves the group at the same moment
                return
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _cut_when_asked(self, *connections: AsyncConnection[Any]) -> None:
        await self._is_cut.wait()
        for connection in connections:
            _hang_up(connection)

    async def _connect(self) -> AsyncConnection[Any]:
        return await AsyncConnection.connect(self._conninfo, autocommit=True)

    def _begin(self, sender: AsyncConnection[Any]) -> None:
        self._sender = sender
        self._connected.set()
        _log.info("event=bus_connected replica=%s", self.id)
        for callback in self._on_connect:
            callback()

    def _end(self) -> None:
        """Drop what waits: whether it, and what came before it, has arrived is not known."""
        self._sender = None
        self._connected.clear()
        self._is_cut.clear()
        if dropped := self._outbox.clear():
            self.num_dropped += dropped
            _log.warning("event=messages_dropped replica=%s messages=%d", self.id, dropped)
        self._pieces.clear()
        self.fail_questions("this replica has lost its database; try again in a moment")


@contextlib.contextmanager
def _in_time(connection: AsyncConnection[Any]) -> Iterator[None]:
    """Hang up on a database that does not answer."""
    alarm = asyncio.get_running_loop().call_later(_HANGS_S, _hang_up, connection)
    try:
        yield
    finally:
        alarm.cancel()


def _hang_up(connection: AsyncConnection[Any]) -> None:
    """Have whatever waits for a connection fail at once; to cancel a statement takes the database's help."""
    with contextlib.suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)


def first_line(error: BaseException) -> str:
    """Return what an error says first; PostgreSQL's library adds advice."""
    return str(error).partition("\n")[0]


def _channel_of(replica_id: str) -> str:
    return f"{_EVERYONE}_{hashlib.sha256(replica_id.encode()).hexdigest()[:32]}"

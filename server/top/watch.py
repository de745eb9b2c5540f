"""Follows a coordinator and draws what it says, until ``q`` or Ctrl-C."""

from __future__ import annotations

import queue
import threading
import time

from rich.console import Console
from rich.live import Live

from bnncore.errors import BitfleetError, ConfigurationError, UnreachableError
from server.client import FleetClient, FleetEvent
from server.top.board import Board
from server.top.keys import pressed_keys
from server.top.picture import draw

_TICK_S = 0.25
_READ_AFTER_EVENTS_S = 0.5
"""Seconds between two looks while events come."""
_POLL_S = 5.0
"""Seconds between two looks without events: times and memory change without one."""
_FOLLOW_AGAIN_S = 10.0


def show_once(fleet: FleetClient, url: str, console: Console) -> None:
    """Draw a coordinator's state as it is now."""
    board = Board(fleet)
    board.refresh(is_followed=False)
    console.print(draw(board, url, height=1000))


def watch(fleet: FleetClient, url: str, console: Console) -> None:
    """Draw a coordinator's state as it changes, until ``q`` is pressed.

    Raises:
      ConfigurationError: there is no terminal.
      BitfleetError: there was no answer to begin with, or the coordinator refused.
    """
    if not console.is_terminal:
        raise ConfigurationError("top needs a terminal to draw in; --once prints the same, once")
    board, follower = Board(fleet), _Follower(fleet)
    board.refresh(is_followed=False)
    note, is_stale = "", False
    with (
        pressed_keys() as keys,
        Live(draw(board, url, console.height), console=console, screen=True, auto_refresh=False) as live,
    ):
        while not keys.has_quit(_TICK_S):
            for event in follower.events():
                board.take(event)
                is_stale = True
            if time.monotonic() - board.read_at > (_READ_AFTER_EVENTS_S if is_stale else _POLL_S):
                is_stale = False
                try:
                    board.refresh(is_followed=follower.is_following)
                    note = "" if follower.is_following else f"no events; looking every {_POLL_S:g} s"
                except UnreachableError:
                    note = "no answer; trying again"
                    board.read_at = time.monotonic()
            live.update(draw(board, url, console.height, note), refresh=True)


class _Follower:
    """Reads events beside the drawing; goes on by itself when the stream cannot be had for a while."""

    def __init__(self, fleet: FleetClient) -> None:
        self._fleet = fleet
        self._events: queue.SimpleQueue[FleetEvent] = queue.SimpleQueue()
        self.is_following = False
        threading.Thread(target=self._follow, name="events", daemon=True).start()

    def events(self) -> list[FleetEvent]:
        """Return what came since the last call."""
        found = []
        while not self._events.empty():
            found.append(self._events.get())
        return found

    def _follow(self) -> None:
        while True:
            try:
                for event in self._fleet.events(patience_s=0.0):
                    self.is_following = True
                    self._events.put(event)
            except BitfleetError:
                self.is_following = False
                time.sleep(_FOLLOW_AGAIN_S)

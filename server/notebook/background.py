"""Runs a coroutine to its end beside a thread that may have a running event loop of its own, as a notebook's has."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

_T = TypeVar("_T")
_News = TypeVar("_News")

_LOOK_S = 0.1
"""Between two looks whether there is news, an end, or Ctrl-C."""


def run_beside(
    make: Callable[[Callable[[_News], None]], Coroutine[Any, Any, _T]], on_news: Callable[[_News], None]
) -> _T:
    """Run a coroutine in a thread and an event loop of its own, and wait for what it returns.

    Ctrl-C, or whatever else ends the wait, cancels it and is raised when it has cleared up.

    Args:
      make: makes the coroutine, given what it tells news to.
      on_news: is called with them, in the caller's thread.
    """
    news: queue.SimpleQueue[_News] = queue.SimpleQueue()
    begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[_T]]] = Future()

    async def run() -> _T:
        task = asyncio.ensure_future(make(news.put))
        begun.set_result((asyncio.get_running_loop(), task))
        return await task

    with ThreadPoolExecutor(1, thread_name_prefix="federate") as thread:
        outcome = thread.submit(lambda: asyncio.run(run()))
        try:
            while not outcome.done():
                _pass_on(news, on_news, _LOOK_S)
        except BaseException:
            loop, task = begun.result()
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended meanwhile
                loop.call_soon_threadsafe(task.cancel)
            raise
    while not news.empty():
        _pass_on(news, on_news, 0)
    return outcome.result()


def _pass_on(news: queue.SimpleQueue[_News], on_news: Callable[[_News], None], timeout_s: float) -> None:
    try:
        item = news.get(timeout=timeout_s)
    except queue.Empty:
        return
    on_news(item)

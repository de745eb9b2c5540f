"""A real browser for the end-to-end tests: the system's Chromium, and what is asked of each page."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.patience import LIMIT_S, wait_for

_NAMES = ("chromium", "chromium-browser", "google-chrome")

_AUDIT = Path(__file__).with_name("audit.js").read_text()


@dataclass
class Window:
    """A page of the browser, and what it complained of."""

    page: Any
    url: str
    complaints: list[str] = field(default_factory=list)
    """Errors of scripts, and of the console: what the page's policy forbids is among them."""

    def listen(self, message: Any) -> None:
        """Take note of a line of the console."""
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def open(self, path: str) -> Any:
        """Go to a page of the dashboard."""
        return self.page.goto(self.url + path)

    def shrink(self, width: int, *, theme: str = "light") -> None:
        """Give the window another width and the system other colours."""
        self.page.set_viewport_size({"width": width, "height": 844 if width < 600 else 900})
        self.page.emulate_media(color_scheme=theme, reduced_motion="reduce")

    def wrongs(self) -> list[str]:
        """List what is wrong with the page for those who do not see it, see it badly, or see little of it at once."""
        for _ in range(30):  # a figure is fitted to another width in the frames after it has it
            found: list[str] = self.page.evaluate(_AUDIT)
            if not found:
                break
            self.page.wait_for_timeout(100)
        return found

    def until(self, what: str, expression: str, argument: Any = None) -> None:
        """Wait until an expression holds in the page, or in the one that it goes to; ``what`` is for the message.

        The page's own ``wait_for_function`` looks a second time in a way that the pages' policy forbids.
        """
        from playwright.sync_api import Error

        def holds() -> bool:
            try:
                return bool(self.page.evaluate(expression, argument))
            except Error:  # the page is being left, or what it loads is not there yet
                return False

        wait_for(what, holds)

    def picture(self, path: Path) -> None:
        """Keep how the whole page looks."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path, full_page=True)


def has_chromium() -> bool:
    """Say whether there is a browser."""
    return _chromium() is not None


def _chromium() -> str | None:
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


def chromium() -> str:
    """Find the system's Chromium; skips the test when there is none."""
    found = _chromium()
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(_NAMES)} is installed; sudo apt install chromium")
    return found


@contextlib.contextmanager
def window(url: str) -> Iterator[Window]:
    """Open a window of a browser that trusts no certificate but takes the coordinator's, and has seen nothing yet."""
    path = chromium()
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'bitfleet[dev]'")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=path,
            # for the whole browser: what a context ignores does not count for a download over a connection of its own
            args=["--no-sandbox", "--disable-gpu", "--ignore-certificate-errors"],
            timeout=LIMIT_S * 1000,
        )
        try:
            context = browser.new_context(accept_downloads=True)
            context.set_default_timeout(LIMIT_S * 1000)
            opened = Window(context.new_page(), url)
            opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
            opened.page.on("console", opened.listen)
            yield opened
        finally:
            browser.close()

"""Scripts and styles, each served under a name that holds the digest of its content, so that browsers keep it for good.

The charting library is BokehJS, as it lies in the installed package of bokeh, which is never imported.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import importlib.util
import mimetypes
from dataclasses import dataclass
from pathlib import Path

from bnncore.errors import ConfigurationError

STATIC = Path(__file__).parent / "static"
CHARTING = ("bokeh.min.js", "bokeh-api.min.js")
GET_CHARTING = "pip install 'bitfleet[server]'"
"""The command that installs it."""


@dataclass(frozen=True)
class Asset:
    """A file as it is served."""

    path: Path
    digest: str
    """SHA-256 in hex."""

    @property
    def url(self) -> str:
        """Where it is served."""
        return f"/static/{self.path.stem}.{self.digest[:16]}{self.path.suffix}"

    @property
    def media_type(self) -> str:
        """Of its content."""
        return mimetypes.guess_type(self.path.name)[0] or "application/octet-stream"

    @functools.cached_property
    def compressed(self) -> bytes:
        """The content as gzip writes it. Blocking, for the charting library about 0.1 s, once."""
        return gzip.compress(self.path.read_bytes(), compresslevel=6, mtime=0)


@functools.cache
def asset(name: str) -> Asset:
    """Find a file of the dashboard by its name.

    Raises:
      ConfigurationError: the charting library is not installed.
    """
    path = STATIC / name
    if name in CHARTING:
        folder = _charting_folder()
        if folder is None:
            raise ConfigurationError(f"the dashboard draws with bokeh, which is not installed: {GET_CHARTING}")
        path = folder / name
    with path.open("rb") as file:
        return Asset(path, hashlib.file_digest(file, "sha256").hexdigest())


def has_charting() -> bool:
    """Say whether the charting library is installed."""
    return _charting_folder() is not None


def _charting_folder() -> Path | None:
    spec = importlib.util.find_spec("bokeh")
    for package in (spec and spec.submodule_search_locations) or ():
        folder = Path(package) / "server" / "static" / "js"
        if folder.is_dir():
            return folder
    return None


def names() -> list[str]:
    """List the files that pages may load."""
    return sorted([*(path.name for path in STATIC.iterdir()), *(CHARTING if has_charting() else ())])

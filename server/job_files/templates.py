"""Job files for common cases, which come with bitfleet and teach by their comments."""

from __future__ import annotations

from importlib import resources

from bnncore.errors import ConfigurationError
from server.job_files.reading import JobFile, parse_text

_SUFFIX = ".toml"


def list_templates() -> dict[str, str]:
    """Return the templates' names, each with its first line: what it is for."""
    return {name: _text(name).splitlines()[0].lstrip("# ") for name in _names()}


def read_template(name: str) -> JobFile:
    """Return a template.

    Raises:
      ConfigurationError: there is none of this name.
    """
    if name not in _names():
        raise ConfigurationError(f"template must be one of {', '.join(_names())}, got {name!r}")
    return parse_text(f"template {name}", "toml", _text(name))


def _names() -> list[str]:
    files = (resources.files("server") / "job_templates").iterdir()
    return sorted(file.name.removesuffix(_SUFFIX) for file in files if file.name.endswith(_SUFFIX))


def _text(name: str) -> str:
    return (resources.files("server") / "job_templates" / f"{name}{_SUFFIX}").read_text(encoding="utf-8")

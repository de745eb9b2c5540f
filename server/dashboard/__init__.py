"""The status page: one self-contained HTML file that polls ``/api/v1``; it loads nothing from anywhere else."""

from importlib import resources

__all__ = ["read_page"]


def read_page() -> str:
    """Return the page's HTML."""
    return (resources.files("server.dashboard") / "index.html").read_text(encoding="utf-8")

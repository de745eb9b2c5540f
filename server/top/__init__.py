"""``bitfleet-server top``: the fleet live in a terminal."""

from server.top.watch import show_once, watch

__all__ = ["show_once", "watch"]

"""People's side: REST under ``/api/v1``, health, metrics and the dashboard, over the coordinator."""

from server.api.app import create_app

__all__ = ["create_app"]

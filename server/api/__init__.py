"""People's side: REST under ``/api/v1``, health, metrics and the status page, over the coordinator."""

from server.api.app import create_app

__all__ = ["create_app"]

"""People's side: REST under ``/api/v1``, health, metrics and the dashboard, over the coordinator.

``server.api.app`` puts it together. Nothing is imported here: what it answers with, the views, is ``server.client``'s
too, which serves nobody.
"""

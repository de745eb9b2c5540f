"""Where the parts are put together: the only place that knows the database, gRPC and HTTP at once."""

from server.app.serve import serve

__all__ = ["serve"]

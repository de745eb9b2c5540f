"""The schema's history."""

__all__: list[str] = []

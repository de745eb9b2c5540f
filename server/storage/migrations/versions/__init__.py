"""One file a step, in the order of their numbers."""

__all__: list[str] = []

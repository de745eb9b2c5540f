"""What survives a power cut: jobs, rounds and updates in a database, payloads in a content-addressed folder."""

__all__: list[str] = []

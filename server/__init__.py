"""The coordinator: domain (rounds, strategies) | storage | rpc (devices) | api (people) | dashboard.

Imports run one way: ``api`` and ``rpc`` -> ``coordinator`` -> ``strategies`` and ``storage.base``; ``app`` wires
the parts together and is the only place that knows all of them. Nothing happens at import.
"""

__all__: list[str] = []

"""The command ``bitfleet``: train, evaluate, memory, bench, info."""

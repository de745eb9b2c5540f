"""The command ``bitfleet``: train, evaluate, memory, info."""

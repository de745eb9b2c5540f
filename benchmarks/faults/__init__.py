"""Faults that are done to a real fleet on purpose, and what comes of them; ``python -m benchmarks.faults --help``."""

"""A Flower app: the network of ``benchmarks.flower`` in PyTorch. It runs in Flower's own environment."""

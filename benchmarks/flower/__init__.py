"""A fleet beside Flower's: bytes, time and memory of the same rounds, each side as its users run it."""

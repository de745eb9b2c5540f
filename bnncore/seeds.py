"""Seeds for independent streams, derived from one seed and names instead of from a global generator."""

from __future__ import annotations

import hashlib

__all__ = ["derive_seed"]


def derive_seed(*parts: int | str) -> int:
    """Derive a seed from what it is for: the first 8 bytes (big endian) of ``sha256("/".join(parts))``.

    The same parts give the same seed on every machine and in every version; any other part gives an unrelated one.

    Args:
      parts: integers and strings, e.g. ``derive_seed(job_seed, round_number, device_id)``. A string that holds a
        slash could stand for two parts: keep slashes out of names.

    Returns:
      An integer in [0, 2**64).
    """
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")

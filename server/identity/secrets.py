"""Tokens and keys: random texts that are shown once, of which the coordinator keeps digests."""

from __future__ import annotations

import hashlib
import secrets

_ID_BYTES = 4
_SECRET_BYTES = 32


def new_secret(kind: str) -> tuple[str, str]:
    """Make a secret.

    Args:
      kind: the prefix that tells people, and tools that look for leaked secrets, what it is.

    Returns:
      Its public id, and the secret: ``KIND_ID_RANDOM`` with 256 random bits.
    """
    name = secrets.token_hex(_ID_BYTES)
    return name, f"{kind}_{name}_{secrets.token_urlsafe(_SECRET_BYTES)}"


def digest_of(secret: str) -> str:
    """SHA-256 in lower-case hex. A slow hash is for secrets that could be guessed, which 256 random bits are not.

    What strangers send as a secret may be any text, half a surrogate pair too.
    """
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()

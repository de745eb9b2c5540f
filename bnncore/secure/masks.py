"""Which keys masks, seals and commitments are made of: what a device and the coordinator must derive alike.

A member u sends ``y_u = x_u + PRG(own_u) + sum over v > u of PRG(pair_uv) - sum over v < u of PRG(pair_uv)``, v running
over its neighbours that sent shares. Members are ordered by name. Source: Bonawitz et al., CCS 2017, figure 4, round 2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from bnncore.secure.crypto import agree, derive
from bnncore.secure.ring import RingVector

__all__ = ["add_pair_mask", "commit", "masking_bound", "own_mask_key", "seal_key"]


def own_mask_key(seed: bytes, digest: bytes) -> bytes:
    """Give the key of a member's own mask, of the seed that only it knows until its shares are revealed."""
    return derive(seed, "own mask", digest)


def commit(seed: bytes, digest: bytes) -> bytes:
    """Commit to a seed: it tells nothing of it, and is of no other."""
    return derive(seed, "commitment", digest)


def masking_bound(masking: Collection[str], *, complete: bool) -> bytes:
    """Give what pair masks are bound to beside the exchange: who masks, when every member knows all that do.

    Members that were told of different ones then have masks that do not cancel, and their sum stays noise.
    """
    return hashlib.sha256("\n".join(sorted(masking)).encode()).digest() if complete else b""


def add_pair_mask(
    vector: RingVector, private: bytes, public: bytes, digest: bytes, bound: bytes, *, mine: str, other: str, undo: bool
) -> None:
    """Add the mask that ``mine`` has in common with ``other``, or take it off: by the private key of either of them."""
    pair = [name.encode() for name in sorted((mine, other))]
    key = derive(agree(private, public), "pair mask", digest, *pair, bound)
    vector.add_mask(key, negative=(mine > other) != undo)


def seal_key(private: bytes, public: bytes, digest: bytes, sender: str, holder: str) -> bytes:
    """Give the key that a member's shares are sealed with for a holder: of one direction, so none can be sent back."""
    return derive(agree(private, public), "sealed shares", digest, sender.encode(), holder.encode())

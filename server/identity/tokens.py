"""Tokens: each lets so many devices enrol until it expires, and is good for nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping

from server.errors import InvalidRequestError
from server.identity.secrets import digest_of, new_secret
from server.storage.trust import TokenRecord

MAX_USES = 10_000
MAX_LIFETIME_S = 90 * 86400.0
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_LABELS = 32


def new_token(*, uses: int, lifetime_s: float, labels: Mapping[str, str], now: float) -> tuple[TokenRecord, str]:
    """Make a token; returns what is kept of it, and its secret, which is told only now.

    Args:
      uses: how many devices may enrol with it.
      lifetime_s: seconds from now on.
      labels: what those devices are labelled.
      now: seconds since 1970.

    Raises:
      InvalidRequestError: a number or a label makes no sense.
    """
    if not 1 <= uses <= MAX_USES:
        raise InvalidRequestError(f"uses must be 1 to {MAX_USES}, got {uses}")
    if not 0 < lifetime_s <= MAX_LIFETIME_S:
        raise InvalidRequestError(f"a token may live up to {MAX_LIFETIME_S / 86400:g} days, got {lifetime_s:g} s")
    check_labels(labels)
    token_id, secret = new_secret("bft")
    return TokenRecord(token_id, digest_of(secret), dict(labels), uses, now, now + lifetime_s), secret


def check_labels(labels: Mapping[str, str]) -> None:
    """Raise InvalidRequestError unless labels are a few pairs of short words."""
    wrong = [
        f"{key}={value}" for key, value in labels.items() if not (_LABEL.fullmatch(key) and _LABEL.fullmatch(value))
    ]
    if len(labels) > _MAX_LABELS:
        raise InvalidRequestError(f"there must be at most {_MAX_LABELS} labels, got {len(labels)}")
    if wrong:
        raise InvalidRequestError(f"labels must be KEY=VALUE of up to 64 of [A-Za-z0-9._-] each, got {wrong}")

"""Requests that may be sent again: the header ``Idempotency-Key`` (draft-ietf-httpapi-idempotency-key-header).

Whoever got no answer does not know whether what was asked for was made. A request under the key of an earlier one is
given what that one made. The draft has the key in quotes; without them, as others send it, it is the same.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header


def _read(
    idempotency_key: Annotated[
        str | None,
        Header(
            pattern=r'^(?:"[!#-~]{1,255}"|[!#-~]{1,255})$',
            description="Anything unique, such as a UUID: sent again with it, the request makes nothing new",
        ),
    ] = None,
) -> str | None:
    return None if idempotency_key is None else idempotency_key.strip('"')


IdempotencyKey = Annotated[str | None, Depends(_read)]
"""A parameter of routes: the request's key, None where it has none."""

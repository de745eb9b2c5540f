"""The fields of a form that a page has sent."""

from __future__ import annotations

from urllib.parse import parse_qsl

from fastapi import Request

from server.errors import InvalidRequestError

_MOST_FIELDS = 32


async def read_form(request: Request) -> dict[str, str]:
    """Read a form that was sent; raises InvalidRequestError when it is none."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise InvalidRequestError(f"a form must be application/x-www-form-urlencoded, got {kind!r:.80}")
    return parse_form(await request.body())


def parse_form(body: bytes) -> dict[str, str]:
    """Parse the fields of a form; of one that comes twice the last counts.

    Raises:
      InvalidRequestError: it is not as a browser writes it.
    """
    try:
        text = body.decode("ascii")
        return dict(parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS))
    except ValueError as error:
        raise InvalidRequestError(f"the form cannot be read: {error}") from error

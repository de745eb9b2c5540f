"""What schemathesis asks of every answer beside its own checks: an error is a problem, and tells of nothing inside."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.check
def an_error_is_a_problem(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case[Any]
) -> None:
    if response.status_code >= 400:
        kind = response.headers.get("content-type", [""])[0]
        assert kind == "application/problem+json" or case.method == "HEAD", f"{response.status_code} is told as {kind}"
    for word in (b"Traceback", b'File "', b"site-packages"):
        assert word not in response.content, f"the answer tells of the inside: {word!r}"

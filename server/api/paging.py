"""Lists a page at a time: the answer is the page's array; the header ``Link`` leads to the next one (RFC 8288)."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Query, Request, Response

from server.storage.pages import Page

MOST = 500


class Paging:
    """What part of a list is wanted: all of it."""

    limit: int = 1_000_000
    after: str | None = None

    def tell(self, page: Page[Any]) -> None:
        """Hear of the page that was read."""


EVERYTHING = Paging()


class AskedPaging(Paging):
    """What part of a list a request asks for; its answer says how to ask for the next part."""

    def __init__(
        self,
        request: Request,
        response: Response,
        limit: Annotated[int, Query(ge=1, le=MOST, description="Most entries of the answer")] = 100,
        after: Annotated[
            str | None, Query(max_length=200, description="From the header `Link` of the page before")
        ] = None,
    ) -> None:
        self.limit = limit
        self.after = after
        self._url = request.url
        self._response = response

    def tell(self, page: Page[Any]) -> None:
        """Set the answer's headers."""
        self._response.headers["X-Total-Count"] = str(page.total)
        if page.next is not None:
            url = self._url.include_query_params(limit=self.limit, after=page.next)
            self._response.headers["Link"] = f'<{url.path}?{url.query}>; rel="next"'


Asked = Annotated[AskedPaging, Depends()]

PAGED: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": {
            "Link": {
                "description": 'The next page, with rel="next"; missing on the last one',
                "schema": {"type": "string"},
            },
            "X-Total-Count": {"description": "Entries on all pages", "schema": {"type": "integer"}},
        }
    }
}
"""For the description of a route that gives pages."""

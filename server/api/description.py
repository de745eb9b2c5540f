"""The API's description of itself (``/openapi.json``): what FastAPI knows of it, with an example of every object."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI

from server.api.examples import EXAMPLES

_METHODS = ("get", "post", "put", "patch", "delete")


def describe(app: FastAPI) -> None:
    """Let the app's description hold examples."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = copy.deepcopy(plain())
            for media in _media(document):
                example = _example_of(media.get("schema", {}), document["components"]["schemas"])
                if example is not None:
                    media.setdefault("example", example)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend it


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every operation of a description with its name, such as ``GET /api/v1/jobs``."""
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                yield f"{method.upper()} {path}", item[method]


def _media(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for _, operation in operations(document):
        for part in (operation.get("requestBody", {}), *operation["responses"].values()):
            yield from part.get("content", {}).values()


def _example_of(schema: dict[str, Any], components: dict[str, Any]) -> Any:
    if schema.get("type") == "array":
        entry = _example_of(schema["items"], components)
        return None if entry is None else [entry]
    name = schema.get("$ref", "").rpartition("/")[2]
    return EXAMPLES.get(name) or components.get(name, {}).get("example")

"""The one error table, and that both transports use it."""

from __future__ import annotations

import http

import grpc
import pytest

from bnncore.errors import ConfigurationError
from server import errors
from server.errors import STATUS_OF_ERROR, ServerError, status_of


def all_kinds() -> list[type[ServerError]]:
    return [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, ServerError) and kind is not ServerError
    ]


@pytest.mark.parametrize("kind", all_kinds())
def test_every_error_has_a_status_that_exists_on_both_sides(kind: type[ServerError]) -> None:
    http_status, grpc_code = STATUS_OF_ERROR[kind]

    assert http.HTTPStatus(http_status).value >= 400
    assert grpc.StatusCode[grpc_code] is not grpc.StatusCode.OK


def test_a_kind_of_a_known_error_has_its_status() -> None:
    class MissingRoundError(errors.NotFoundError):
        pass

    assert status_of(MissingRoundError("x")) == (404, "NOT_FOUND")


def test_anything_else_is_the_coordinators_own_fault() -> None:
    assert status_of(ValueError("x")) == (500, "INTERNAL")
    assert status_of(ConfigurationError("x")) == (500, "INTERNAL")

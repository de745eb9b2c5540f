"""The log: ids of requests, a line for each, and JSON that says the same as text."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterator
from io import StringIO
from pathlib import Path

import pytest

from server.app.logging import JsonFormatter, TextFormatter, fields_of
from tests.server.conftest import make_job
from tests.server.identity.house import SecureHouse, open_secure_house


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[SecureHouse]:
    async with open_secure_house(tmp_path / "state") as running:
        yield running


@pytest.fixture
def log() -> Iterator[tuple[StringIO, StringIO]]:
    """Write what the server logs as JSON and as text."""
    logger, level = logging.getLogger("server"), logging.getLogger("server").level
    handlers = []
    for formatter in (JsonFormatter(), TextFormatter()):
        handler = logging.StreamHandler(StringIO())
        handler.setFormatter(formatter)
        handlers.append(handler)
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handlers[0].stream, handlers[1].stream
    for handler in handlers:
        logger.removeHandler(handler)
    logger.setLevel(level)


def record(message: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("server.test", logging.INFO, "", 0, message, arguments, None)


@pytest.mark.parametrize(
    ("message", "arguments", "fields"),
    [
        (
            "event=round_failed job=%s round=%d reason=%r overhead_s=%s",
            ("j", 3, "two words", None),
            {"event": "round_failed", "job": "j", "round": 3, "reason": "two words", "overhead_s": None},
        ),
        ("event=a s=%.4f is=%s what=%s", (0.5, True, Path("x")), {"event": "a", "s": 0.5, "is": True, "what": "x"}),
        ("event=queue_interrupted", (), {"event": "queue_interrupted"}),
        ("event=settings %r", ("x",), None),
        ("a message of a library with 100 %", (), None),
    ],
)  # fmt: skip
def test_a_message_of_keys_keeps_its_values_types(
    message: str, arguments: tuple[object, ...], fields: dict[str, object] | None
) -> None:
    assert fields_of(record(message, *arguments)) == fields


async def test_a_request_has_an_id_in_its_answer_and_in_every_line_that_it_leaves(
    house: SecureHouse, log: tuple[StringIO, StringIO]
) -> None:
    job = make_job().model_dump(mode="json")
    named = await house.admin.post("/api/v1/jobs", json=job, headers={"X-Request-ID": "from-proxy.7"})
    unnamed = [
        await house.stranger.get("/api/v1/jobs?key=secret", headers={"X-Request-ID": bad})
        for bad in ("x" * 65, "a b", 'a"b', "")
    ]
    await house.admin.get("/healthz")

    lines = [json.loads(line) for line in log[0].getvalue().splitlines()]
    assert named.headers["x-request-id"] == "from-proxy.7"
    its = [line for line in lines if line.get("request") == "from-proxy.7"]
    assert [line["event"] for line in its] == ["job_created", "request"]
    assert its[0]["rounds"] == 3
    asked = {name: its[1][name] for name in ("method", "path", "status", "actor", "origin", "level")}
    assert asked == {
        "method": "POST",
        "path": "/api/v1/jobs",
        "status": 201,
        "actor": "key:first",
        "origin": "127.0.0.1",
        "level": "INFO",
    }
    assert its[1]["bytes"] == len(named.content)
    names = [answer.headers["x-request-id"] for answer in unnamed]
    assert len(set(names)) == 4
    assert all(len(name) == 16 for name in names)
    assert [(line["status"], line["actor"]) for line in lines if line.get("request") in names] == [(401, "-")] * 4
    assert "secret" not in log[0].getvalue() + log[1].getvalue()
    assert "healthz" not in log[0].getvalue()
    assert "event=job_created" in log[1].getvalue()
    assert "request=from-proxy.7" in log[1].getvalue()

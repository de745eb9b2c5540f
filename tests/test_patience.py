"""Tests wait as long as a slow machine needs: no limit of theirs is a number of its own, or a library's default."""

import ast
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.patience import LIMIT_S

TESTS = Path(__file__).resolve().parent
_WAITS = {"asyncio.wait_for": 1, "asyncio.timeout": 0, "communicate": 1, "settimeout": 0, "wait": 0}
"""What takes its limit by position, and at which."""
_REQUESTS = {f"httpx.{name}" for name in ("AsyncClient", "Client", "delete", "get", "post", "put", "request", "stream")}
"""What gives up after five seconds when it is not told otherwise."""


def dotted(function: ast.expr) -> str:
    """Give the name by which a function is called: with its module's, where that is how it is called."""
    match function:
        case ast.Attribute(ast.Name(module), name):
            return f"{module}.{name}"
        case ast.Attribute(_, name) | ast.Name(name):
            return name
    return ""


def hasty(source: str) -> Iterator[int]:
    """Give the lines that wait for a number of seconds less than the limit, or for a library's default."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        named = {keyword.arg: keyword.value for keyword in node.keywords}
        place = _WAITS.get(name, _WAITS.get(name.rpartition(".")[2]))
        at_place = node.args[place : place + 1] if place is not None else []
        after_wait = [of for what, of in pairwise(node.args) if isinstance(what, ast.Attribute) and what.attr == "wait"]
        own = named.get("timeout_s") if name == "wait_for" else named.get("timeout")
        for limit in (*at_place, *after_wait, own):
            if isinstance(limit, ast.Constant) and isinstance(limit.value, (int, float)) and limit.value < LIMIT_S:
                yield node.lineno
        if name in _REQUESTS and not named.keys() & {"timeout", "transport", None}:
            yield node.lineno


def test_every_wait_has_patience() -> None:
    found = [
        f"{path.relative_to(TESTS)}:{line}" for path in sorted(TESTS.rglob("*.py")) for line in hasty(path.read_text())
    ]

    assert not found, f"these give up on a machine that stalls; take LIMIT_S of tests/patience.py: {found}"


@pytest.mark.parametrize(
    "line",
    [
        "await asyncio.wait_for(event, 20)",
        "async with asyncio.timeout(5): pass",
        "process.wait(timeout=30)",
        "process.wait(30)",
        "asyncio.to_thread(process.wait, 30)",
        "wait_for('the end', has_ended, timeout_s=5)",
        "process.communicate(None, 30)",
        "subprocess.run(command, timeout=60)",
        "connection.settimeout(1)",
        "httpx.get(url)",
        "httpx.AsyncClient(base_url=url, verify=trust)",
    ],
)
def test_what_has_none_is_found(line: str) -> None:
    assert list(hasty(f"async def test():\n    {line}")) == [2]


@pytest.mark.parametrize(
    "line", ["asyncio.timeout(LIMIT_S)", "httpx.get(url, timeout=LIMIT_S)", "httpx.Client(transport=app)"]
)
def test_what_has_patience_is_left_alone(line: str) -> None:
    assert not list(hasty(line))

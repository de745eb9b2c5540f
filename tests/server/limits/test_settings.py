"""Every limit is a setting, an option and a line of docs/limits.md, which agree with each other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bnncore.errors import ConfigurationError
from server.cli.limits import _LIMITS
from server.cli.main import main
from server.settings import Settings, build_settings

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "limits.md").read_text()


@pytest.mark.parametrize("field", _LIMITS)
def test_an_option_tells_its_default_and_is_on_the_page(field: str) -> None:
    told = re.search(r"\((\d+)", _LIMITS[field][1])

    assert told
    assert float(told[1]) == getattr(Settings(), field)
    assert f"`--{field.removesuffix('_s').replace('_', '-')}`" in PAGE


def test_what_is_given_holds(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(
        ["serve", "--max-streams", "7", "--request-timeout", "2.5", "--disk-quota-bytes", "9", "--print-config"]
    )
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}

    assert code == 0
    assert lines["max_streams"] == ["7", "(command", "line)"]
    assert lines["request_timeout_s"] == ["2.5", "(command", "line)"]
    assert lines["disk_quota_bytes"] == ["9", "(command", "line)"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_streams": "0"}, "max_streams must be at least 1"),
        ({"max_header_bytes": "10"}, "max_header_bytes must be 1 KiB to 1 MiB"),
        ({"request_timeout_s": "0"}, "request_timeout_s must be a positive number of seconds"),
        ({"idle_timeout_s": "inf"}, "idle_timeout_s must be a positive number of seconds"),
        ({"disk_quota_bytes": "-1"}, "disk_quota_bytes and min_free_bytes must be 0 or more"),
        ({"max_chunks": "10"}, "must hold max_update_bytes"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(values: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        build_settings(values, {})

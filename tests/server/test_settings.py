"""Settings: where values come from, and what is refused before anything starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from bnncore.errors import ConfigurationError
from server.settings import Address, Settings, build_settings


def test_the_command_line_wins_over_the_environment_and_that_over_the_default() -> None:
    environ = {"BITFLEET_SERVER_GRPC": "127.0.0.1:1", "BITFLEET_SERVER_HTTP": "127.0.0.1:2", "PATH": "/bin"}

    settings, sources = build_settings({"grpc": "127.0.0.1:3", "insecure": True, "http": None}, environ)

    assert (settings.grpc.port, settings.http.port, settings.settle_s) == (3, 2, 0.5)
    assert (sources["grpc"], sources["http"], sources["settle_s"]) == ("command line", "environment", "default")


def test_every_kind_of_value_is_read_from_the_environment() -> None:
    environ = {
        "BITFLEET_SERVER_INSECURE": "yes",
        "BITFLEET_SERVER_EXIT_WHEN_DONE": "0",
        "BITFLEET_SERVER_STATE": "/var/lib/bitfleet",
        "BITFLEET_SERVER_JOB": "a.json,b.toml",
        "BITFLEET_SERVER_HEARTBEAT_INTERVAL_S": "2.5",
        "BITFLEET_SERVER_MAX_CHUNK_BYTES": "4096",
        "BITFLEET_SERVER_LOG_LEVEL": "debug",
    }

    settings, _ = build_settings({}, environ)

    assert (settings.insecure, settings.exit_when_done) == (True, False)
    assert (settings.state, settings.job) == (Path("/var/lib/bitfleet"), (Path("a.json"), Path("b.toml")))
    assert (settings.heartbeat_interval_s, settings.max_chunk_bytes, settings.log_level) == (2.5, 4096, "DEBUG")
    assert settings.database_url == "sqlite:////var/lib/bitfleet/bitfleet.db"


def test_settings_cannot_be_changed() -> None:
    settings = Settings(insecure=True)

    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.insecure = False  # type: ignore[misc]


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"BITFLEET_SERVER_GPRC": "x"}, "BITFLEET_SERVER_GPRC is unknown; known are .*BITFLEET_SERVER_GRPC"),
        ({"BITFLEET_SERVER_INSECURE": "maybe"}, "BITFLEET_SERVER_INSECURE='maybe' is malformed"),
        ({"BITFLEET_SERVER_SETTLE_S": "soon"}, "BITFLEET_SERVER_SETTLE_S='soon' is malformed"),
    ],
)
def test_a_wrong_environment_is_refused_by_name(environ: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        build_settings({"insecure": True}, environ)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tls_cert": Path("c")}, "an own certificate needs --tls-cert, --tls-key and --tls-ca"),
        ({"tls_cert": Path("c"), "tls_key": Path("k"), "tls_ca": Path("a")}, "--insecure serves without TLS"),
        ({"device_certificate_days": 0.0}, "device_certificate_days must be more than 0"),
        ({"device_grace_days": -1.0}, "device_grace_days 0 to 3650"),
        ({"enrolments_per_minute": 0}, "enrolments_per_minute must be at least 1"),
        ({"grpc": "0.0.0.0:7070"}, r"--grpc 0\.0\.0\.0:7070 is reachable from other machines"),
        ({"http": "192.168.1.4:8080"}, "--http .* is reachable from other machines"),
        ({"http": "[::]:8080"}, r"--http \[::\]:8080 is reachable"),
        ({"http": "example.org:8080"}, "is reachable from other machines"),
        ({"grpc": "7070"}, "--grpc='7070' is malformed: HOST:PORT"),
        ({"grpc": "127.0.0.1:99999"}, "HOST:PORT"),
        ({"grpc": "127.0.0.1:80", "http": "127.0.0.1:80"}, "--grpc and --http need two addresses"),
        ({"heartbeat_interval_s": 0.0}, "heartbeat_interval_s must be a positive"),
        ({"upload_idle_s": float("nan")}, "upload_idle_s must be a positive"),
        ({"settle_s": -1.0}, "settle_s must be 0 or more"),
        ({"max_chunk_bytes": 4 * 1024 * 1024}, "max_chunk_bytes must be 1 KiB to 2 MiB"),
        ({"max_update_bytes": 5000}, "max_update_bytes .* max_chunk_bytes|must hold at least one chunk"),
        ({"max_jobs": 0}, "max_jobs must be at least 1"),
        ({"log_level": "LOUD"}, "log_level must be one of"),
        ({"colour": "red"}, "unknown settings"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        build_settings({"insecure": True, **changes}, {})


@pytest.mark.parametrize("text", ["0.0.0.0:7070", "[::]:7070", "example.org:7070"])
def test_every_address_is_served_with_tls(text: str) -> None:
    assert str(build_settings({"grpc": text, "http": text.replace("7070", "8080")}, {})[0].grpc) == text


@pytest.mark.parametrize("text", ["127.0.0.1:0", "localhost:7070", "[::1]:7070", "127.8.9.1:7070"])
def test_loopback_addresses_are_served_without_tls(text: str) -> None:
    assert str(build_settings({"insecure": True, "grpc": text}, {})[0].grpc) == text


def test_an_address_is_written_as_it_is_read() -> None:
    assert Address.parse("[::1]:5") == Address("::1", 5)
    assert str(Address("::1", 5)) == "[::1]:5"


@pytest.mark.parametrize("url", ["postgresql+psycopg://me:s3cret@db/x", "postgresql://me:s3cr@et@db/x"])
def test_the_databases_password_is_never_shown(url: str) -> None:
    settings, _ = build_settings({"insecure": True, "database": url}, {})

    assert "s3cr" not in repr(settings)
    assert "me:***@db/x" in settings.shown()["database"]
    assert settings.database_url == url

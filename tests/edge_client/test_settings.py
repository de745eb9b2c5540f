from pathlib import Path

import pytest

from edge_client.errors import SettingsError
from edge_client.settings import ClientSettings, default_state_dir


def test_the_command_line_precedes_the_environment() -> None:
    environ = {"BITFLEET_CLIENT_SERVER": "a:1", "BITFLEET_CLIENT_THREADS": "3", "BITFLEET_CLIENT_DATA": "/d"}

    settings = ClientSettings.resolve({"server": "b:2", "data": None}, environ)

    assert (settings.server, settings.threads, settings.data) == ("b:2", 3, Path("/d"))
    assert (settings.max_retries, settings.log_level, settings.device_id) == (None, "info", None)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"server": "host"}, "HOST:PORT"),
        ({"server": "host:0"}, "1..65535"),
        ({"server": "host:65536"}, "1..65535"),
        ({"server": "http://host:1"}, "HOST:PORT"),
        ({"device_id": "a/b"}, "--device-id"),
        ({"device_id": "a" * 65}, "--device-id"),
        ({"threads": "0"}, "--threads must be at least 1"),
        ({"threads": "two"}, "--threads must be a whole number"),
        ({"max_retries": "-1"}, "--max-retries"),
        ({"keep_trainer": "-1"}, "--keep-trainer must be seconds, 0 or more, got -1"),
        ({"keep_trainer": "inf"}, "--keep-trainer must be seconds, got 'inf'"),
        ({"allow_battery": "maybe"}, "--allow-battery must be yes or no, got 'maybe'"),
        ({"max_temperature": "nan"}, "--max-temperature must be degrees Celsius, got 'nan'"),
        ({"memory_budget": "plenty"}, "--memory-budget must be an amount such as 64MiB or 500000, got 'plenty'"),
        ({"log_level": "loud"}, "debug, info, warning, error"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(given: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        ClientSettings.resolve({"server": "h:1", "data": "/d", **given}, {})


@pytest.mark.parametrize("server", ["localhost:7070", "10.0.0.1:1", "[::1]:7070"])
def test_names_and_addresses_of_both_kinds_are_servers(server: str) -> None:
    assert ClientSettings.resolve({"server": server, "data": "/d"}, {}).server == server


def test_a_variable_that_is_not_known_is_an_error() -> None:
    with pytest.raises(SettingsError, match="BITFLEET_CLIENT_SEVER is not a variable"):
        ClientSettings.resolve({"server": "h:1", "data": "/d"}, {"BITFLEET_CLIENT_SEVER": "x"})


@pytest.mark.parametrize(
    ("given", "environ", "words"),
    [({"data": "/d"}, {}, "--server"), ({"server": "h:1"}, {}, "--data")],
)
def test_server_and_data_must_be_named(given: dict[str, str], environ: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        ClientSettings.resolve(given, environ)


def test_data_may_be_a_named_set_or_the_common_folder() -> None:
    assert ClientSettings.resolve({"server": "h:1", "dataset": "digits"}, {}).dataset == "digits"
    assert ClientSettings.resolve({"server": "h:1"}, {"BITFLEET_DATA": "/d"}).data is None


def test_state_lies_where_the_system_keeps_state() -> None:
    assert default_state_dir({"XDG_STATE_HOME": "/s"}) == Path("/s/bitfleet")
    assert default_state_dir({}) == Path.home() / ".local/state/bitfleet"


def test_a_memory_budget_is_an_amount() -> None:
    given = {"server": "h:1", "data": "/d"}

    assert ClientSettings.resolve({**given, "memory_budget": "64MiB"}, {}).memory_budget == 64 << 20
    assert ClientSettings.resolve(given, {}).memory_budget == 0

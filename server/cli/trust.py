"""The commands that let devices, people and tools in and out, and show who did what."""

from __future__ import annotations

import argparse
import re

from bnncore.errors import ConfigurationError
from server.cli.asking import ask, ask_all, find_endpoint, print_table, show
from server.client.connection import path_of

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def create_token(arguments: argparse.Namespace) -> int:
    """Make a token; it is shown this once."""
    wanted = {
        "uses": arguments.uses,
        "expires_s": _seconds(arguments.expires),
        "labels": dict(_label(text) for text in arguments.label or ()),
    }
    token = ask(arguments, "POST", "/tokens", json=wanted)

    def print_token() -> None:
        print(token["token"])
        devices = "1 device" if token["uses_left"] == 1 else f"{token['uses_left']} devices"
        print(f"for {devices} until {token['expires_at']}; it is shown this once. On each device:")
        print(
            f"  bitfleet-client enroll --server {find_endpoint(arguments).enrol_url} "
            f"--ca-fingerprint {token['ca_fingerprint']}"
        )

    return show(arguments, token, print_token)


def list_tokens(arguments: argparse.Namespace) -> int:
    """List all tokens, without their secrets."""
    tokens = ask(arguments, "GET", "/tokens")
    rows = ([t["id"], t["uses_left"], t["expires_at"], _labels(t["labels"])] for t in tokens)
    return show(arguments, tokens, lambda: print_table(["token", "uses left", "expires", "labels"], rows))


def delete_token(arguments: argparse.Namespace) -> int:
    """Make a token good for nothing."""
    ask(arguments, "DELETE", path_of("tokens", arguments.token))
    return show(arguments, {"id": arguments.token}, lambda: print(f"token {arguments.token} is good for nothing now"))


def create_key(arguments: argparse.Namespace) -> int:
    """Make an API key; it is shown this once."""
    key = ask(arguments, "POST", "/keys", json={"name": arguments.name, "scope": arguments.scope})
    return show(arguments, key, lambda: print(key["key"]))


def list_keys(arguments: argparse.Namespace) -> int:
    """List all API keys, without their secrets."""
    keys = ask(arguments, "GET", "/keys")
    rows = ([k["id"], k["name"], k["scope"], k["created_at"], k["revoked_at"]] for k in keys)
    return show(arguments, keys, lambda: print_table(["key", "name", "scope", "created", "revoked"], rows))


def revoke_key(arguments: argparse.Namespace) -> int:
    """End a key's life at once."""
    ask(arguments, "DELETE", path_of("keys", arguments.key))
    return show(arguments, {"id": arguments.key}, lambda: print(f"key {arguments.key} opens nothing now"))


def list_identities(arguments: argparse.Namespace) -> int:
    """List all devices that ever enrolled."""
    devices = ask(arguments, "GET", "/identities")
    rows = (
        [d["device_id"], d["state"], d["enrolled_at"], d["certificate_ends_at"], _labels(d["labels"])] for d in devices
    )
    columns = ["device", "state", "enrolled", "certificate ends", "labels"]
    return show(arguments, devices, lambda: print_table(columns, rows))


def revoke_device(arguments: argparse.Namespace) -> int:
    """Shut a device out, at its next message."""
    device = ask(arguments, "POST", path_of("identities", arguments.device, "revoke"))
    return show(arguments, device, lambda: print(f"device {device['device_id']} is {device['state']}"))


def list_audit(arguments: argparse.Namespace) -> int:
    """Show the newest entries of the audit log."""
    if arguments.limit < 1:
        raise ConfigurationError(f"--limit must be at least 1, got {arguments.limit}")
    entries = ask_all(arguments, "/audit", arguments.limit)[::-1]  # the newest where the eye is: at the end
    rows = ([e["at"], e["actor"], e["action"], e["origin"], e["detail"]] for e in entries)
    return show(arguments, entries, lambda: print_table(["at", "who", "what", "from", "detail"], rows))


def _seconds(text: str) -> int:
    match = re.fullmatch(r"(\d+)([smhd])", text)
    if match is None:
        raise ConfigurationError(f"--expires must be a whole number with s, m, h or d, such as 24h, got {text!r}")
    return int(match[1]) * _UNITS[match[2]]


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals or not value:
        raise ConfigurationError(f"--label must be KEY=VALUE, got {text!r}")
    return key, value


def _labels(labels: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(labels.items()))

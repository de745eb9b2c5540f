"""The doctor: each check on a device that is well, and on one that is not."""

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from edge_client.cli import main
from edge_client.doctor.checks import Check, Mark, run_check
from edge_client.doctor.fleet import check_certificate, check_network
from edge_client.doctor.learning import check_data, check_networks
from edge_client.doctor.machine import check_conditions, check_disk
from edge_client.identity import Identity
from edge_client.state_dir import StateDir


def enrolled(root: Path, *, server: str = "127.0.0.1:1", ends_in_s: float = 86400.0) -> StateDir:
    state = StateDir(root)
    state.identity.keep_key(b"key")
    now = time.time()
    identity = Identity("bird-1", server, "https://127.0.0.1:1", now - 86400, now + ends_in_s)
    state.identity.keep(identity, b"certificate", b"ca")
    return state


def test_a_device_that_is_not_enrolled_is_checked_whole(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["doctor", "--data", str(data_dir), "--state", str(tmp_path / "state")]

    assert main(command) == 0
    text = capsys.readouterr().out
    assert main([*command, "--json", "--no-benchmark"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert main(["doctor", "--data", str(tmp_path / "nowhere"), "--no-benchmark", *command[3:]]) == 1
    wrong = capsys.readouterr().out

    by_name: dict[str, Any] = {check["name"]: check for check in facts["checks"]}
    assert list(by_name) == [*("python", "memory", "disk", "clock", "network", "certificate", "conditions", "data")]
    assert by_name["data"]["facts"]["counts"] == {"a": 20, "b": 20, "c": 20}
    assert by_name["network"]["mark"] == "skipped"
    assert "[ok]  data         idx: 60 samples in 3 classes (a 20, b 20, c 20)" in text
    assert re.search(r"\[ok\]  engine +\S+; a step of 20 samples: mlp \S+ ms, cnv \S+ ms", text)
    assert re.search(r"\[ok\]  networks +mlp +fits", text)
    assert text.endswith("this device can take part\n")
    assert "[ X ] data" in wrong
    assert "nowhere does not exist" in wrong
    assert wrong.endswith("this device cannot take part like this\n")


def test_what_is_wrong_with_a_certificate_is_told(tmp_path: Path) -> None:
    assert check_certificate(enrolled(tmp_path / "well")).mark == Mark.OK
    over = check_certificate(enrolled(tmp_path / "over", ends_in_s=-5))
    soon = check_certificate(enrolled(tmp_path / "soon", ends_in_s=3600))
    open_key = enrolled(tmp_path / "open")
    os.chmod(open_key.identity.key_file, 0o644)
    readable = check_certificate(open_key)

    assert (over.mark, over.text) == (Mark.WRONG, "the certificate has ended")
    assert (soon.mark, soon.text) == (Mark.NOTE, "the certificate ends soon")
    assert (readable.mark, readable.advice) == (Mark.WRONG, f"chmod 600 {open_key.identity.key_file}")


def test_a_coordinator_that_is_away_and_checks_that_hang_are_told(tmp_path: Path) -> None:
    def hang() -> Check:
        time.sleep(20)
        return Check("slow", Mark.OK, "")

    network = run_check("network", lambda: check_network(enrolled(tmp_path)), 20)
    hangs = run_check("slow", hang, 0.1)

    assert network.mark == Mark.WRONG
    assert "127.0.0.1:1 cannot be reached" in network.text
    assert (hangs.mark, hangs.text) == (Mark.WRONG, "no answer in 0.1 s")


def test_broken_pictures_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("PIL.Image")
    monkeypatch.setenv("BITFLEET_CACHE", str(tmp_path / "cache"))
    for name in ("cat", "dog"):
        folder = tmp_path / "pictures" / "train" / name
        folder.mkdir(parents=True)
        image.new("RGB", (32, 32), "red").save(folder / "1.png")
    (tmp_path / "pictures" / "train" / "cat" / "2.png").write_bytes(b"no picture")

    check = check_data(None, tmp_path / "pictures")

    assert check.mark == Mark.NOTE
    assert check.facts["counts"] == {"cat": 1, "dog": 1}
    assert "1 could not be read" in check.text
    assert "2.png" in check.text


def test_which_networks_fit_is_told() -> None:
    networks = {
        "mlp": {"memory_bytes": 20 << 20, "step_seconds": 0.002, "is_measured": True},
        "cnv": {"memory_bytes": 40 << 20, "step_seconds": 90.0, "is_measured": True},
        "big": {"memory_bytes": 200 << 20, "step_seconds": None, "is_measured": False},
    }

    check = check_networks(networks, 64 << 20)

    assert check.facts["fits"] == ["mlp"]
    assert [line.split()[1] for line in check.text.splitlines()] == ["fits", "slow", "too"]
    assert check_networks(networks, 1 << 20).mark == Mark.NOTE


def test_what_keeps_it_from_work_and_a_bad_policy_are_told(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('[device]\nhours = "03:00-03:01"\n')
    environ = {"BITFLEET_CLIENT_HOURS": "15:00-15:01"}  # never both
    check = check_conditions(environ, tmp_path, str(policy))
    policy.write_text("[devise]\n")
    bad = run_check("conditions", lambda: check_conditions({}, tmp_path, str(policy)), 10)

    assert (check.mark, check.facts["obstacles"]) == (Mark.NOTE, ["it is outside of its hours"])
    assert bad.mark == Mark.WRONG
    assert "there is no section [devise]" in bad.text
    assert check_disk(tmp_path / "a" / "b").facts["free_bytes"] > 0

"""Simulations with differential privacy: real vectors and noise, under masks or summed alone."""

from pathlib import Path

import pytest

from tests.server.simulate.federations import run

SECURE = ("--cohort", "6", "--secure", "--up", "sign", "--statistics", "2", "--rounds", "2")


@pytest.mark.parametrize("how", [(), ("--sum-only",)], ids=["masked", "sum only"])
def test_devices_add_the_noise_of_a_secure_sum(tmp_path: Path, how: tuple[str, ...]) -> None:
    result = run(tmp_path, *SECURE, *how, "--privacy", "distributed", "--epsilon", "5")

    assert 4.9 < result["epsilon"] <= 5
    assert result["updates"] == 6 * 3


def test_noise_is_not_of_the_seed(tmp_path: Path) -> None:
    options = ("--rounds", "1", "--privacy", "central", "--epsilon", "30", "--clip", "100")

    first, second = (run(tmp_path, *options) for _ in range(2))

    assert first["digest"] != second["digest"]
    assert run(tmp_path, "--rounds", "1")["epsilon"] is None

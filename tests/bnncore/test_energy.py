"""Meters of energy: which is taken, what they count, and what a Raspberry Pi 5 prints."""

from pathlib import Path

import pytest

from bnncore.energy import open_meter
from bnncore.energy.meter import LONGEST_GAP_S, PowerMeter, RaplMeter
from bnncore.energy.pmic import open_pmic, watts_of

ON_A_PI_5 = """\
  3V7_WL_SW_A current(0)=0.10000000A
    VDD_CORE_A current(7)=2.00000000A
     BATT_V volt(25)=0.00000000V
  3V7_WL_SW_V volt(8)=3.70000000V
    VDD_CORE_V volt(15)=0.75000000V
     EXT5V_V volt(24)=5.15000000V
"""


def chip(root: Path, number: int, name: str, **files: str) -> Path:
    folder = root / f"sys/class/hwmon/hwmon{number}"
    folder.mkdir(parents=True)
    for file, text in {"name": name, **files}.items():
        (folder / file).write_text(f"{text}\n")
    return folder


def counter(root: Path, microjoules: int) -> None:
    zone = root / "sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True, exist_ok=True)
    for name, text in (("name", "package-0"), ("max_energy_range_uj", "999999"), ("energy_uj", str(microjoules))):
        (zone / name).write_text(f"{text}\n")


@pytest.fixture(autouse=True)
def no_pi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A PATH without the command of a Raspberry Pi; the folder in it."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


def test_the_boards_own_sensor_comes_first_then_the_processors_counters(tmp_path: Path) -> None:
    assert open_meter(tmp_path) is None
    counter(tmp_path, 900_000)
    meter = open_meter(tmp_path)
    assert isinstance(meter, RaplMeter)
    assert meter.take() == 0.0
    counter(tmp_path, 100_000)  # wrapped around
    assert meter.take() == pytest.approx(0.2)

    chip(tmp_path, 0, "amdgpu", power1_average="90000000")  # no board's
    chip(tmp_path, 1, "ina219", power1_input="broken")
    assert isinstance(open_meter(tmp_path), RaplMeter)
    chip(tmp_path, 2, "power_meter", power1_average="7000000")
    board = open_meter(tmp_path)
    assert board is not None
    assert board.source == "hwmon"
    (tmp_path / "sys/class/hwmon/hwmon1/power1_input").write_text("5000000\n")
    board = open_meter(tmp_path)
    assert board is not None
    assert (board.source, board.take()) == ("ina219", 0.0)
    assert 0 <= board.take() < 5.0 * LONGEST_GAP_S


def test_a_power_is_counted_over_the_time_between_looks() -> None:
    looks = iter([2.0, 4.0, 4.0, 100.0, 100.0])
    seconds = iter([0.0, 1.0, 3.0, 3.0 + 2 * LONGEST_GAP_S, 64.0])
    meter = PowerMeter("ina219", lambda: next(looks), lambda: next(seconds))

    assert [meter.take() for _ in range(5)] == [0.0, 3.0, 8.0, 0.0, 100.0]


def test_the_rails_of_a_pi_are_added_up(no_pi: Path) -> None:
    assert watts_of(ON_A_PI_5) == pytest.approx(0.1 * 3.7 + 2.0 * 0.75)
    assert watts_of('error=1 error_msg="Command not registered"') is None
    assert open_pmic() is None
    command = no_pi / "vcgencmd"
    command.write_text(f"#!/bin/sh\nprintf '%s' '{ON_A_PI_5}'\n")
    command.chmod(0o755)

    watts = open_pmic()
    assert watts is not None
    assert watts() == pytest.approx(1.87)
    command.write_text("#!/bin/sh\necho VCHI initialization failed\n")
    assert open_pmic() is None
    with pytest.raises(OSError, match="names no rail"):
        watts()


def test_the_meter_of_this_machine_if_it_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = open_meter()
    if meter is None:
        pytest.skip("this machine has no energy meter, or lets root alone read it")

    assert meter.take() == 0.0
    assert meter.take() >= 0.0

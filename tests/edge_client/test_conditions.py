"""What a device says of its power, network and temperature, from files such as Linux has them."""

from pathlib import Path
from typing import Any

import pytest

from bitfleet.v1 import fleet_pb2 as wire
from edge_client.budgets import Budgets
from edge_client.conditions import Surroundings
from edge_client.hours import read_hours
from edge_client.policy import Policy
from edge_client.settings import ClientSettings
from tests.edge_client.conftest import Start
from tests.edge_client.wire import Coordinator

BATTERY = {"type": "Battery", "status": "Discharging"}
ROUTES = "Iface\tDestination\tGateway\neth1\t0001A8C0\t00000000\n{}\t00000000\t0101A8C0\n"


def machine(root: Path, **files: str) -> Path:
    """Write files; two underscores stand for a slash."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def supplies(**kinds: dict[str, str]) -> dict[str, str]:
    return {
        f"sys__class__power_supply__{name}__{key}": value
        for name, fields in kinds.items()
        for key, value in fields.items()
    }


def conditions(root: Path, **rules: Any) -> wire.Conditions:
    settings = ClientSettings(server="h:1", state=root, **rules)
    return Surroundings(settings, Budgets.of(settings, Policy()), root=root).read()


def test_a_machine_that_tells_nothing_may_work(tmp_path: Path) -> None:
    assert conditions(tmp_path, max_temperature=50.0) == wire.Conditions()


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ({"BAT0": BATTERY}, True),
        ({"BAT0": BATTERY, "AC": {"type": "Mains", "online": "0"}}, True),
        ({"BAT0": BATTERY, "AC": {"type": "Mains", "online": "1"}}, False),
        ({"BAT0": BATTERY, "usb": {"type": "USB", "online": "1"}}, False),
        ({"BAT0": {**BATTERY, "status": "Charging"}}, False),
        ({"mouse": {**BATTERY, "scope": "Device"}}, False),
    ],
)
def test_a_discharging_battery_that_nothing_helps(tmp_path: Path, kinds: dict[str, Any], expected: bool) -> None:
    machine(tmp_path, **supplies(**kinds))

    assert conditions(tmp_path) == wire.Conditions(on_battery=expected)
    assert conditions(tmp_path, allow_battery=True) == wire.Conditions()


@pytest.mark.parametrize(("interface", "expected"), [("wwan0", True), ("eth0", False)])
def test_a_route_through_a_modem_is_metered(tmp_path: Path, interface: str, expected: bool) -> None:
    machine(tmp_path, proc__net__route=ROUTES.format(interface), sys__class__net__eth0__uevent="INTERFACE=eth0")
    machine(tmp_path, sys__class__net__wwan0__uevent="DEVTYPE=wwan\nINTERFACE=wwan0")

    assert conditions(tmp_path) == wire.Conditions(metered=expected)
    assert conditions(tmp_path, metered=True) == wire.Conditions(metered=True)
    assert conditions(tmp_path, metered=True, allow_metered=True) == wire.Conditions()


def test_the_hottest_zone_counts(tmp_path: Path) -> None:
    machine(
        tmp_path, sys__class__thermal__thermal_zone0__temp="-4000", sys__class__thermal__thermal_zone1__temp="61500"
    )

    assert conditions(tmp_path, max_temperature=61.5) == wire.Conditions()
    assert conditions(tmp_path, max_temperature=61.0) == wire.Conditions(too_hot=True)
    assert conditions(tmp_path) == wire.Conditions()


def test_a_device_that_was_too_hot_cools_down_first(tmp_path: Path) -> None:
    settings = ClientSettings(server="h:1", state=tmp_path, max_temperature=80.0)
    here = Surroundings(
        settings, Budgets.of(settings, Policy(max_temperature=70.0)), root=tmp_path
    )  # the stricter rule holds
    told = []
    for degrees in (69, 71, 66, 65, 69):
        machine(tmp_path, sys__class__thermal__thermal_zone0__temp=str(1000 * degrees))
        told.append(here.read().too_hot)

    assert told == [False, True, True, False, False]
    assert here.temperature() == 69.0


def test_the_owners_file_is_stricter_than_a_flag(tmp_path: Path) -> None:
    machine(tmp_path, **supplies(BAT0=BATTERY))
    flags = {"allow_battery": True, "metered": True, "allow_metered": True, "hours": read_hours("08:00-12:00")}
    settings = ClientSettings(server="h:1", state=tmp_path, **flags)  # type: ignore[arg-type]
    policy = Policy(mains_only=True, unmetered_only=True, hours=read_hours("10:00-18:00"))

    def at(hour: int) -> wire.Conditions:
        return Surroundings(settings, Budgets.of(settings, policy), root=tmp_path, minute=lambda: 60 * hour).read()

    assert at(11) == wire.Conditions(on_battery=True, metered=True)
    assert at(9) == at(13) == wire.Conditions(on_battery=True, metered=True, outside_hours=True)


async def test_the_agent_tells_its_conditions_at_once_and_with_every_heartbeat(
    coordinator: Coordinator, start: Start
) -> None:
    start(coordinator.port, "--metered")

    await coordinator.until(lambda: coordinator.heartbeats)

    assert coordinator.hellos[0].conditions.metered
    assert coordinator.heartbeats[0].conditions.metered

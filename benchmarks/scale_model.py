"""Writes the tables of ``docs/scale.md``: what one, a hundred and a thousand thousand devices ask of a fleet's centre.

    python -m benchmarks.scale_model --page docs/scale.md

Nothing is measured here. The constants of ``Measured`` come from ``docs/results/replicas.json``, which the commands
named in it wrote; those of ``Assumed`` are assumptions. Everything that is computed from them is modelled.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bnncore.secure.values import ValueForm
from bnncore.zoo import build
from server.limits import Limits

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "replicas.json"
FLEETS = (1_000, 100_000, 1_000_000)
BEGIN, END = "<!-- scale: {} -->", "<!-- /scale: {} -->"

_GIB = 2**30
_DAY_S = 86_400.0


@dataclass(frozen=True)
class Measured:
    """What one update and one connected device cost, with three replicas on one machine.

    Attributes:
      door_s: processor seconds of an update at the replica that takes it in.
      lead_s: beside that, at the lead.
      postgres_s: in PostgreSQL.
      statements: of an update, in the database.
      payload_bytes: of an update.
      home_bytes: memory of a device's stream at its own replica.
      mirror_bytes: memory of what each other replica knows of it.
      idle_share: part of a processor that a device's stream takes while nothing happens.
      updates_per_s: with three replicas.
    """

    door_s: float
    lead_s: float
    postgres_s: float
    statements: float
    payload_bytes: int
    home_bytes: float
    mirror_bytes: float
    idle_share: float
    updates_per_s: float

    @classmethod
    def read(cls, path: Path = RESULTS) -> Self:
        """Read what the benchmarks wrote."""
        results = json.loads(path.read_text())
        run = results["intake"]["runs"][-1]
        used = run["processor_s_per_update_with_commit"]
        door_s = used["doors"] / (run["replicas"] - 1)
        one, several = results["streams_of_one"], results["streams"]
        mirror = (several["pss_bytes_per_device"] - one["pss_bytes_per_device"]) / (several["replicas"] - 1)
        return cls(
            door_s=used["doors"] + door_s,
            lead_s=max(0.0, used["lead"] - door_s),
            postgres_s=used["postgresql"],
            statements=run["statements_per_update"],
            payload_bytes=run["payload_bytes"],
            home_bytes=one["pss_bytes_per_device"],
            mirror_bytes=max(0.0, mirror),
            idle_share=several["processor_share_idle"] / several["devices"],
            updates_per_s=run["updates_per_s"],
        )


@dataclass(frozen=True)
class Assumed:
    """What is not measured: how a fleet is used, what machines have, and what they cost."""

    model: str = "cnv"
    down_bits: float = 1.057
    """A weight and round: docs/results/federation.md, `cnv`, recipe `onebit`."""
    rounds_per_day: int = 24
    window_s: float = 1800.0
    """In which the updates of a round come, evenly."""
    site_devices: int = 1_000
    replica_gib: float = 8.0
    postgres_cores: float = 8.0
    network_bit_s: float = 10e9
    vcpu_hour: float = 0.04
    put_per_million: float = 5.0
    get_per_million: float = 0.4
    egress_per_gb: float = 0.05
    heartbeat_s: float = Limits.heartbeat_interval_s
    streams: int = Limits.max_streams


class Fleet:
    """A fleet of so many members at the centre: devices, or sites that stand for them."""

    def __init__(self, measured: Measured, assumed: Assumed, devices: int, *, has_sites: bool) -> None:
        self.devices = devices
        self.measured, self.assumed, self.has_sites = measured, assumed, has_sites
        self.members = math.ceil(devices / assumed.site_devices) if has_sites else devices
        spec = build(assumed.model)
        self.down_bytes = assumed.down_bits * spec.num_binary_weights / 8
        self.clear_bytes = 8 * spec.num_values if has_sites else measured.payload_bytes
        self.masked_bytes = ValueForm(spec, "update", weights="signs").layout(devices).num_bytes
        self.replicas = max(3, math.ceil(self.members / assumed.streams))

    @property
    def updates_per_s(self) -> float:
        return self.members / self.assumed.window_s

    @property
    def bytes_in(self) -> float:
        """Of a round, in the clear."""
        return self.members * float(self.clear_bytes)

    @property
    def memory_of_replica(self) -> float:
        """Bytes for streams at one replica: its own, and what it knows of all others."""
        own = self.members / self.replicas
        return own * self.measured.home_bytes + (self.members - own) * self.measured.mirror_bytes

    @property
    def by_size(self) -> float:
        """How many times the bytes of a measured update a member sends; its cost grows with them at most."""
        return max(1.0, self.clear_bytes / self.measured.payload_bytes)

    @property
    def busy_cores(self) -> float:
        """While a round's updates come."""
        per_update = self.measured.door_s * self.by_size + self.measured.lead_s + self.measured.postgres_s
        return self.updates_per_s * per_update + self.members * self.measured.idle_share

    @property
    def dollars_per_day(self) -> dict[str, float]:
        assumed, rounds = self.assumed, self.assumed.rounds_per_day
        busy_h = rounds * assumed.window_s / 3600
        idle_h = 24 - busy_h
        cores_h = busy_h * self.busy_cores + idle_h * self.members * self.measured.idle_share
        least = 24 * (self.replicas + 1)  # a processor for each process, at the least
        return {
            "processors": max(cores_h, least) * assumed.vcpu_hour,
            "requests": rounds * self.members * (assumed.put_per_million + assumed.get_per_million) / 1e6,
            "egress": rounds * self.members * self.down_bytes / 1e9 * assumed.egress_per_gb,
        }


def table_of_fleets(measured: Measured, assumed: Assumed) -> str:
    """Both forms of a fleet, for each number of devices."""
    fleets = [Fleet(measured, assumed, count, has_sites=sites) for sites in (False, True) for count in FLEETS]
    rows: list[tuple[str, Callable[[Fleet], str]]] = [
        ("members at the centre", lambda fleet: f"{fleet.members:,}"),
        ("replicas, by streams", lambda fleet: str(fleet.replicas)),
        ("sockets, all replicas", lambda fleet: f"{fleet.members:,}"),
        ("memory for streams, each replica", lambda fleet: _bytes(fleet.memory_of_replica)),
        ("heartbeats a second", lambda fleet: _number(fleet.members / assumed.heartbeat_s)),
        ("updates a second", lambda fleet: _number(fleet.updates_per_s)),
        ("bytes in, a round, in the clear", lambda fleet: _bytes(fleet.bytes_in)),
        ("bytes in, a round, masked", lambda fleet: _bytes(fleet.members * float(fleet.masked_bytes))),
        ("bytes out, a round", lambda fleet: _bytes(fleet.members * fleet.down_bytes)),
        ("Gbit/s in, while updates come", lambda fleet: _number(8e-9 * fleet.bytes_in / assumed.window_s)),
        ("processors, while updates come", lambda fleet: _number(fleet.busy_cores)),
        ("of them, the lead's one loop", lambda fleet: _number(fleet.updates_per_s * measured.lead_s)),
        ("of them, PostgreSQL", lambda fleet: _number(fleet.updates_per_s * measured.postgres_s)),
        ("database statements a second", lambda fleet: _number(fleet.updates_per_s * measured.statements)),
        ("rows written a day", lambda fleet: f"{fleet.members * assumed.rounds_per_day:,}"),
        ("dollars a day: processors", lambda fleet: _number(fleet.dollars_per_day["processors"])),
        ("dollars a day: object store's requests", lambda fleet: _number(fleet.dollars_per_day["requests"])),
        ("dollars a day: bytes out", lambda fleet: _number(fleet.dollars_per_day["egress"])),
    ]
    heads = [f"{fleet.devices:,}{' by sites' if fleet.has_sites else ''}" for fleet in fleets]
    return _table(["devices", *heads], [[name, *(say(fleet) for fleet in fleets)] for name, say in rows])


def table_of_limits(measured: Measured, assumed: Assumed) -> str:
    """What is full at which number of members, the first one first; three replicas."""
    replicas, window_s = 3, assumed.window_s
    memory = (
        assumed.replica_gib
        * _GIB
        / (measured.home_bytes / replicas + measured.mirror_bytes * (replicas - 1) / replicas)
    )
    in_window = assumed.network_bit_s / 8 * window_s
    limits = [
        ("updates of a round, `--max-cohort`", float(Limits.max_cohort), "a setting"),
        ("streams of three replicas, `--max-streams`", float(replicas * assumed.streams), "a setting; more replicas"),
        ("what three replicas and PostgreSQL took in on two cores", measured.updates_per_s * window_s,
         "more processors, then more replicas"),
        ("the lead's loop, one processor", window_s / measured.lead_s if measured.lead_s else math.inf,
         "sites; longer windows"),
        (f"PostgreSQL, {assumed.postgres_cores:g} processors", window_s * assumed.postgres_cores / measured.postgres_s,
         "sites; longer windows"),
        (f"memory for streams, {assumed.replica_gib:g} GiB a replica", memory, "sites: each replica knows all streams"),
        (f"{assumed.network_bit_s / 1e9:g} Gbit/s of updates", in_window / measured.payload_bytes, "more replicas"),
    ]  # fmt: skip
    limits.sort(key=lambda limit: limit[1])
    rows = [[f"{_round_down(at):,}" if math.isfinite(at) else "-", name, help_] for name, at, help_ in limits]
    return _table(["members of a round", "what is full", "what helps"], rows)


def table_of_constants(measured: Measured, assumed: Assumed) -> str:
    """The constants, and where each comes from."""
    rows = [
        ["an update at its door", f"{1e3 * measured.door_s:.1f} ms", "measured: `intake`"],
        ["beside that at the lead", f"{1e3 * measured.lead_s:.1f} ms", "measured: `intake`"],
        ["in PostgreSQL", f"{1e3 * measured.postgres_s:.1f} ms", "measured: `intake`"],
        ["database statements of an update", f"{measured.statements:.2f}", "measured: `intake`"],
        ["bytes of an update", f"{measured.payload_bytes:,}", f"measured: `intake`, {assumed.model}, `onebit`"],
        ["memory of a stream at its replica", _bytes(measured.home_bytes), "measured: `streams --replicas 1`"],
        ["at each other replica", _bytes(measured.mirror_bytes), "measured: `streams`, three replicas beside one"],
        ["of a processor, a quiet stream", f"{1e6 * measured.idle_share:.0f} millionths", "measured: `streams`"],
        ["bits a weight, down", f"{assumed.down_bits}", "measured: [federation](results/federation.md)"],
        ["rounds a day; their updates come in", f"{assumed.rounds_per_day}; {assumed.window_s / 60:g} min", "assumed"],
        ["devices of a site", f"{assumed.site_devices:,}", "assumed"],
        ["a processor", f"${assumed.vcpu_hour} an hour", "assumed"],
        ["an object store's writes", f"${assumed.put_per_million} a million", "assumed"],
        ["its reads", f"${assumed.get_per_million} a million", "assumed"],
        ["bytes out to the internet", f"${assumed.egress_per_gb} a GB", "assumed"],
    ]  # fmt: skip
    return _table(["constant", "value", "source"], rows)


def tables(path: Path = RESULTS) -> dict[str, str]:
    """All tables of the page, by name."""
    measured, assumed = Measured.read(path), Assumed()
    return {
        "constants": table_of_constants(measured, assumed),
        "fleets": table_of_fleets(measured, assumed),
        "limits": table_of_limits(measured, assumed),
    }


def fill(text: str, found: dict[str, str]) -> str:
    """Put tables between their marks."""
    for name, table in found.items():
        begin, end = BEGIN.format(name), END.format(name)
        if begin not in text or end not in text:
            raise ValueError(f"the page must have the marks {begin} and {end}")
        head, rest = text.split(begin)
        text = f"{head}{begin}\n\n{table}\n\n{end}{rest.split(end)[1]}"
    return text


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{_number(count)} {unit}"


def _number(value: float) -> str:
    """Three digits that count."""
    if value == 0 or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value >= 0.001 else f"{value:.1g}"


def _round_down(value: float) -> int:
    """Two digits that count."""
    step = 10 ** max(0, math.floor(math.log10(value)) - 1)
    return int(value // step * step)


def main() -> int:
    """Print the tables, or put them into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="what was measured")
    parser.add_argument("--page", type=Path, metavar="FILE", help="put the tables between this page's marks")
    args = parser.parse_args()
    found = tables(args.results)
    if args.page:
        args.page.write_text(fill(args.page.read_text(), found))
    else:
        print("\n\n".join(found.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

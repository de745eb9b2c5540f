"""Measures coordinators that share a PostgreSQL and an S3 object store, behind a balancer, all on this machine.

    python -m benchmarks.replicas faults --json build/replicas-faults.json
    python -m benchmarks.replicas intake --replicas 1,2,3 --json build/replicas-intake.json
    python -m benchmarks.replicas streams --devices 2000 --json build/replicas-streams.json
    python -m benchmarks.replicas upgrade --from 720921e --json build/replicas-upgrade.json

``faults``: replicas are killed and started again every few seconds, PostgreSQL and the object store too, while virtual
devices play a job; then what devices were told, the database and the models are held against each other and against a
calm run. ``upgrade``: replicas of an old version from git are replaced by those of this checkout one after the other,
and one goes back, while devices of both versions play two jobs; then the same account is made. Both exit with 1 when
anything was lost, doubled or different. ``intake``: all devices of a round send at once;
updates a second, processor time and database statements of each. ``streams``: memory of a connected device, and the
time until all have a new round's task.
"""

from __future__ import annotations

import argparse
import datetime
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.replicas import faults, intake, streams, upgrade
from benchmarks.replicas.versions import Version, check_side_by_side
from bnncore.cli.output import check_destination, write_json
from bnncore.errors import ConfigurationError

CORES = (2, 4, 8, 16, 32, 64)


def main() -> int:
    """Run one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("faults", help="kill replicas, PostgreSQL and the object store under a fleet at work")
    part.add_argument("--replicas", type=int, default=3, help="(default: 3)")
    part.add_argument("--devices", type=int, default=60, help="(default: 60)")
    part.add_argument("--rounds", type=int, default=20, help="(default: 20)")
    part.add_argument("--kills", type=int, default=32, help="of replicas (default: 32)")
    part.add_argument("--seed", type=int, default=0, help="of updates, victims and times (default: 0)")
    part = parts.add_parser("intake", help="have all devices of a round send at once")
    part.add_argument("--replicas", default="1,2,3", metavar="N,N", help="numbers of replicas (default: 1,2,3)")
    part.add_argument("--devices", default="10,50,200", metavar="N,N", help="sizes of a cohort (default: 10,50,200)")
    part.add_argument("--model", default="cnv", help="a network of the zoo for samples of 32x32x3 (default: cnv)")
    part = parts.add_parser("streams", help="hold streams")
    part.add_argument("--replicas", type=int, default=3, help="(default: 3)")
    part.add_argument("--devices", type=int, default=2000, help="(default: 2000)")
    part.add_argument("--watch", type=float, default=30.0, metavar="SECONDS", help="they are watched (default: 30)")
    part = parts.add_parser("upgrade", help="replace the replicas of one version by another's, and go back")
    part.add_argument("--from", required=True, metavar="REV", dest="old", help="the old version, as git names it")
    part.add_argument("--to", metavar="REV", dest="new", help="the new version (default: this checkout)")
    part.add_argument("--devices", type=int, default=20, help="(default: 20)")
    part.add_argument("--clients", type=int, default=4, help="of them, real agents that train (default: 4)")
    part.add_argument("--rounds", type=int, default=12, help="of two jobs together (default: 12)")
    part.add_argument("--seed", type=int, default=0, help="of updates and times (default: 0)")
    for part in parts.choices.values():
        part.add_argument("--json", metavar="PATH", help="write the result here; - = standard output")
    args = parser.parse_args()
    check_destination(args.json, "--json")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # which ends what was started, too
    root = Path(tempfile.mkdtemp(prefix="bitfleet-replicas-"))
    result: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": " ".join(["python -m benchmarks.replicas", *sys.argv[1:]]),
    }
    is_good = True
    match args.part:
        case "faults":
            campaign = faults.Campaign(args.replicas, args.devices, args.rounds, args.kills, seed=args.seed)
            calm = faults.play(root / "calm", campaign, _say, is_calm=True)
            _say(f"calm: {len(calm.digests)} rounds in {calm.seconds:.0f} s")
            disturbed = faults.play(root / "disturbed", campaign, _say, is_calm=False)
            disturbed.compare(calm)
            result |= faults.as_json(campaign, calm, disturbed)
            is_good = not (calm.losses.count or disturbed.losses.count or calm.problems or disturbed.problems)
        case "intake":
            result["runs"] = _take_in(root, args.replicas, args.devices, args.model)
            several = [run for run in result["runs"] if run["replicas"] > 1]
            if several:
                result["modelled"] = intake.predict(several[-1], list(CORES))
        case "streams":
            result |= streams.measure(root, args.replicas, args.devices, args.watch, _say)
            is_good = not result["problems"]
        case "upgrade":
            try:
                result |= _upgrade(root, args)
            except ConfigurationError as error:
                shutil.rmtree(root)
                parser.error(str(error))
            is_good = not (any(result["losses"].values()) or result["problems"])
    write_json(result, args.json)
    if not is_good:
        print(f"something was lost; all files are left in {root}", file=sys.stderr)
        return 1
    shutil.rmtree(root)
    return 0


def _take_in(root: Path, replicas: str, devices: str, model: str) -> list[dict[str, Any]]:
    """Every number of replicas with the largest cohort, and every cohort with the most replicas."""
    counts, cohorts = (sorted(int(number) for number in numbers.split(",")) for numbers in (replicas, devices))
    job = {"model": {"zoo": model}, "input_shape": [32, 32, 3], "recipe": "onebit"}
    runs = []
    for count in counts:
        runs += intake.measure(root / str(count), count, cohorts if count == counts[-1] else cohorts[-1:], job, _say)
    return runs


def _upgrade(root: Path, args: argparse.Namespace) -> dict[str, Any]:
    if args.devices < args.clients + 3 or args.clients < 0 or args.rounds < 2:
        raise ConfigurationError("an upgrade needs three virtual devices beside the agents, and two rounds")
    old = Version.from_git(args.old, root / "old")
    new = Version.from_git(args.new, root / "new") if args.new else Version.of_this_checkout()
    check_side_by_side(old, new)
    campaign = upgrade.Campaign(old, new, args.devices, args.clients, args.rounds, seed=args.seed)
    calm = upgrade.play(root / "calm", campaign, _say, is_calm=True)
    _say(f"calm: {len(calm.run.digests)} rounds in {calm.run.seconds:.0f} s")
    upgraded = upgrade.play(root / "upgraded", campaign, _say, is_calm=False)
    upgraded.run.compare(calm.run)
    result = upgrade.as_json(campaign, calm, upgraded)
    print(upgrade.table(result), file=sys.stderr)
    return result


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

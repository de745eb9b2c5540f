"""Does faults to a real fleet, and fills a table of ``docs/reliability.md`` with what came of them.

    python -m benchmarks.faults kills --times 220 --json build/kills.json --page docs/reliability.md
    python -m benchmarks.faults around --times 3 --json build/around.json --page docs/reliability.md
    python -m benchmarks.faults links --times 3 --json build/links.json --page docs/reliability.md

A coordinator over TLS and three enrolled devices learn jobs. ``kills``: processes are killed at every named step
(``steps.py``) and at random times, so often in all. ``around``: the coordinator's disk, bits on it and all clocks fail
(``surroundings.py``, which needs the rights to mount), each so often. ``links``: cables are pulled between networks
(which needs the rights to make them). Once a job has ended, what the coordinator's
database holds is compared with what the coordinator had said was committed, with what devices had been told, and with
the digests of a run that nobody disturbed. Exits with 1 when anything was lost.
"""

from __future__ import annotations

import argparse
import datetime
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.faults.fleet import DEVICES
from benchmarks.faults.kills import AROUND, KILLED, Campaign, make_orders, run_undisturbed
from benchmarks.faults.networks import own_network
from benchmarks.faults.surroundings import own_mounts, run_links, run_surroundings
from benchmarks.faults.table import Outcome, fill_page, rows_of
from bnncore.cli.output import check_destination, write_json
from bnncore.data import open_dataset
from server.demo.scenario import write_shards


def main() -> int:
    """Run the faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("kills", "around", "links"))
    parser.add_argument("--times", type=int, default=0, help="kills in all (220), or times of each other fault (3)")
    parser.add_argument("--seed", type=int, default=0, help="of the order and of random times (default: 0)")
    parser.add_argument("--json", metavar="PATH", help="write the result here; - = standard output")
    parser.add_argument("--page", type=Path, metavar="FILE", help="fill the tables of this page")
    args = parser.parse_args()
    check_destination(args.json, "--json")
    began = time.monotonic()
    times = args.times or {"kills": 220, "around": 3, "links": 3}[args.part]
    if problem := {"around": own_mounts, "links": own_network}.get(args.part, str)():  # before any process is started
        print(f"this needs more rights than there are here: {problem}", file=sys.stderr)
        return 3
    root = Path(tempfile.mkdtemp(prefix="bitfleet-faults-"))
    shards = {name: root / "data" / name for name in DEVICES}
    with open_dataset("digits", None, split="train") as dataset:
        write_shards(dataset, list(shards.values()))

    undisturbed: dict[str, list[str]] = {}
    rounds_s: list[float] = []
    for kind in KILLED if args.part == "kills" else (AROUND,):
        undisturbed[kind], round_s = run_undisturbed(root, kind, shards)
        rounds_s.append(round_s)
        _say(f"undisturbed: {kind}, {len(undisturbed[kind])} rounds, {round_s:.2f} s each")
    if args.part == "kills":
        campaign = Campaign(root, shards, undisturbed, args.seed, _say)
        campaign.run(make_orders(times, args.seed))
        account = campaign.account
    else:
        run = run_links if args.part == "links" else run_surroundings
        account = run(root, shards, undisturbed[AROUND], times, _say)
    outcome = Outcome(
        part=args.part,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        command=f"python -m benchmarks.faults {args.part} --times {times} --seed {args.seed}",
        seconds=time.monotonic() - began,
        steps=len(account.steps),
        rounds=account.rounds,
        updates=account.updates,
        round_s=max(rounds_s),
        losses=vars(account.losses),
        rows=rows_of(account),
    )
    write_json(outcome.as_json(), args.json)
    if args.page:
        fill_page(args.page, outcome)
    if account.losses.count:
        print(f"something was lost; all files are left in {root}", file=sys.stderr)
        return 1
    shutil.rmtree(root)
    return 0


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

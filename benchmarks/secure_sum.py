"""What a sum of votes under masks costs: bits, and processor time of a device and of the coordinator.

    python -m benchmarks.secure_sum --cohort 50 --weights 14000000 --dropout 0.3 --json PATH

A device's vote is one bit a weight, so the sum of a cohort of 50 takes 6 bits a weight. Real ``Participant`` objects
with certificates and a real ``Combiner`` play whole exchanges in one process, one device after the other; what they say
to each other goes from hand to hand as bytes, and a device is written and read again between any two steps, as on its
disk. Two rows:

* ``lost_before_masked``: the lost devices sent their shares and then nothing. The dearest case for the coordinator, and
  the one that the top of the JSON is of: it makes the mask that each survivor has in common with each lost one again.
* ``lost_after_masked``: they sent their masked votes, and no shares after that. Nobody's votes are missing in the sum.

``device_s`` is the median over the surviving devices of the processor time of all of a device's steps: keys, shares,
masked vote (putting it into the ring included), shares of others' secrets. ``server_s`` is the coordinator's, from the
keys to the sum. Both are times of one thread of a process; neither contains the network, the disk or training.
``bits_per_weight_up`` is 8 x the bytes of a device's four messages / weights. ``sum_matches`` compares the sum, element
by element, with votes that NumPy added up.

Beside it, in the same run, SecAgg+ of Flower, a float32 update of ``--flower-weights`` weights by the same cohort with
the same losses (benchmarks/flower/secagg.py says what is timed). Its times are scaled to ``--weights`` by the number of
weights, but for secret sharing, which does not depend on it. ``--no-flower`` leaves it out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from numpy.typing import NDArray

from benchmarks.flower.processes import make_flower_venv, versions
from bnncore.cli.output import check_destination, rss_peak_bytes, write_json
from bnncore.secure import Combiner, Context, ExchangeRules, Participant, RingLayout, RingSegment, RingVector, Trust
from bnncore.secure.crypto import load_signer
from bnncore.secure.ring import BLOCK
from server.identity.authority import Authority, private_pem

T = TypeVar("T")
CONTEXT = Context("secure-sum", 1, 1, "0" * 64)
AT_ONCE = 1 << 20
"""Elements that are compared at a time."""


class Clock:
    """Adds up the processor time of what it runs."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def run(self, act: Callable[[], T]) -> T:
        begin = time.process_time()
        result = act()
        self.seconds += time.process_time() - begin
        return result


class Device:
    """One device of the cohort, with its own clock and the bytes that it sent."""

    def __init__(self, name: str, number: int, weights: int, authority: Authority, rules: ExchangeRules) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = authority.certify(name, key.public_key(), timedelta(days=30))
        signer = load_signer(private_pem(key), certificate.public_bytes(Encoding.PEM))
        self.name = name
        self.clock = Clock()
        self.num_bytes = 0
        self._votes = (number, weights)
        self._kept = b""
        self.keys = self._step(lambda _: Participant.begin(CONTEXT, rules, name, signer))

    def votes(self) -> NDArray[np.uint8]:
        """Give its votes, a bit each: made again each time, so that no two devices' need memory at once."""
        number, weights = self._votes
        return random_votes(number, weights)

    def share(self, keys_of: dict[str, bytes], num_members: int, trust: Trust) -> bytes:
        return self._step(lambda device: (device, device.share(keys_of, num_members, trust)))

    def mask(self, sealed_by: dict[str, bytes], layout: RingLayout) -> bytes:
        votes = self.votes()

        def act(device: Participant) -> tuple[Participant, bytes]:
            vector = RingVector.zeros(layout)
            vector.put_bits("votes", votes)
            return device, device.mask(sealed_by, vector)

        return self._step(act)

    def reveal(self, survived: dict[str, bool]) -> bytes:
        return self._step(lambda device: (device, device.reveal(survived)))

    def _step(self, act: Callable[[Any], Any]) -> bytes:
        def whole() -> bytes:
            result = act(Participant.from_bytes(self._kept) if self._kept else None)
            device, message = result if isinstance(result, tuple) else (result, result.keys)
            self._kept = device.to_bytes()
            return bytes(message)

        message = self.clock.run(whole)
        self.num_bytes += len(message)
        return message


def random_votes(number: int, weights: int) -> NDArray[np.uint8]:
    """Give a device's votes packed: ``uint8[ceil(weights / 8)]``, little-endian bits."""
    votes = np.frombuffer(np.random.default_rng(number).bytes(-(-weights // 8)), np.uint8).copy()
    if weights % 8:
        votes[-1] &= (1 << weights % 8) - 1
    return votes


def sum_matches(total: RingVector, devices: list[Device], weights: int) -> bool:
    """Compare a sum with what NumPy adds up; counts fit a byte each."""
    counts: NDArray[Any] = np.zeros(weights, np.uint8 if len(devices) < 256 else np.uint32)
    for device in devices:
        counts += np.unpackbits(device.votes(), bitorder="little", count=weights)
    return all(
        np.array_equal(total.get("votes", first, min(AT_ONCE, weights - first)), counts[first : first + AT_ONCE])
        for first in range(0, weights, AT_ONCE)
    )


def play(cohort: int, weights: int, lost: int, *, after_masked: bool, rules: ExchangeRules) -> dict[str, Any]:
    """Play an exchange, and say what it cost."""
    assert AT_ONCE % BLOCK == 0
    layout = RingLayout((RingSegment("votes", weights, math.ceil(math.log2(cohort + 1))),))
    with TemporaryDirectory() as folder:
        authority = Authority.open(Path(folder))
    trust = Trust(authority.pem)
    devices = [Device(f"device-{i:04}", i, weights, authority, rules) for i in range(cohort)]
    gone = {device.name for device in devices[1 :: max(cohort // max(lost, 1), 1)][:lost]}
    server = Clock()

    keys_of = {device.name: device.keys for device in devices}
    combiner = server.run(lambda: Combiner(CONTEXT, rules, layout, keys_of, trust))
    for device in devices:
        shares = device.share(server.run(partial(combiner.keys_for, device.name)), cohort, trust)
        server.run(partial(combiner.take_shares, device.name, shares))
    server.run(combiner.start_masking)
    for device in devices:
        if device.name not in gone or after_masked:
            masked = device.mask(server.run(partial(combiner.sealed_for, device.name)), layout)
            server.run(partial(combiner.take_masked, device.name, masked))
    server.run(combiner.start_reveal)
    survivors = [device for device in devices if device.name not in gone]
    for device in survivors:
        shares = device.reveal(server.run(partial(combiner.survived_for, device.name)))
        server.run(partial(combiner.take_reveal, device.name, shares))
    total = server.run(combiner.finish)

    summed = devices if after_masked else survivors
    seconds = [device.clock.seconds for device in survivors]
    return {
        "bits_per_weight_up": 8 * max(device.num_bytes for device in survivors) / weights,
        "device_s": statistics.median(seconds),
        "device_s_max": max(seconds),
        "server_s": server.seconds,
        "dropped": lost,
        "summed": len(summed),
        "sum_matches": sum_matches(total, summed, weights),
        "rss_peak_bytes": rss_peak_bytes(),
    }


def play_flower(venv: Path, cohort: int, weights: int, lost: int) -> dict[str, Any]:
    """Have Flower do the like in its own environment."""
    script = Path(__file__).parent / "flower" / "secagg.py"
    words = [str(venv / "bin" / "python"), str(script), str(cohort), str(weights), str(lost)]
    output = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(json.loads(output.splitlines()[-1]))


def scale_time(flower: dict[str, Any], side: str, weights: int) -> float:
    """Give what Flower's time of a side would be with so many weights."""
    sharing: float = flower[f"{side}_sharing_s"]
    whole: float = flower[f"{side}_s"]
    flower_weights: int = flower["weights"]
    return sharing + (whole - sharing) * weights / flower_weights


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cohort", type=int, default=50)
    parser.add_argument("--weights", type=int, default=14_000_000)
    parser.add_argument("--dropout", type=float, default=0.3, help="part of the cohort that is lost (0.3)")
    parser.add_argument("--threshold", type=float, default=2 / 3, help="part of the shares that opens a secret (2/3)")
    parser.add_argument("--flower-weights", type=int, default=1_000_000)
    parser.add_argument("--flower-venv", metavar="DIR", default="build/flower-venv")
    parser.add_argument("--no-flower", action="store_true", help="leave Flower out")
    parser.add_argument("--json", default="-", metavar="PATH", help="where to write the outcome (-: standard output)")
    args = parser.parse_args()
    check_destination(args.json, "--json")
    lost = int(args.cohort * args.dropout)
    rules = ExchangeRules(threshold=args.threshold)
    rows = {}
    for row in ("lost_before_masked", "lost_after_masked"):
        rows[row] = play(args.cohort, args.weights, lost, after_masked=row == "lost_after_masked", rules=rules)
        print(f"{row}: {rows[row]}", file=sys.stderr, flush=True)
    outcome = {
        **rows["lost_before_masked"],
        "cohort": args.cohort,
        "weights": args.weights,
        "rows": rows,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": os.getloadavg(),
    }
    if not args.no_flower:
        venv = make_flower_venv(Path(args.flower_venv)).resolve()
        flower = play_flower(venv, args.cohort, args.flower_weights, lost)
        scaled = {f"{side}_s_scaled": scale_time(flower, side, args.weights) for side in ("device", "server")}
        outcome["flower"] = flower | scaled | {"scaled_to_weights": args.weights, "versions": versions(venv)}
        print(f"Flower: {outcome['flower']}", file=sys.stderr, flush=True)
    write_json(outcome, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

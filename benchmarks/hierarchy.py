"""Sites between devices and a coordinator: the model that comes out, and the bytes that the centre takes in.

    python -m benchmarks.hierarchy --sites 4 --devices 15 --model cnv --json build/hierarchy.json

A site adds up its devices' updates and submits what they come to, one partial sum. Three ways, each beside the flat
fleet of the same devices, with updates of random bits:

* ``int8``, ``sign``: in the clear. A site folds its devices' updates into an accumulator, and the centre merges the
  accumulators: ``FoldingStrategy.merge``, as replicas do.
* ``masked``: real exchanges of secure aggregation. Flat, all devices are members; with sites, a site's sum is what it
  masks as one member of an exchange of sites, so that the centre sees the sum over all sites alone. The ring is as wide
  as the sum of all devices needs. That a site's own devices hide their updates from it by an exchange among themselves
  is not played: it is the flat one in small.

``is_same`` compares the digests of the weights that the centre makes; they are equal to the last bit or there is an
error in here. ``centre_bytes`` is what the centre takes in of updates, partial sums, and an exchange's four messages.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.streaming_ends import make_update
from bnncore.cli.output import check_destination, format_bytes, write_json
from bnncore.codec import get_codec
from bnncore.secure import Combiner, Context, ExchangeRules, Participant, RingLayout, RingVector
from bnncore.secure.metrics import Metrics
from bnncore.secure.values import ValueForm
from bnncore.spec import ModelSpec
from bnncore.state import State, weights_digest
from bnncore.zoo import build
from server.strategies import Accumulator, FoldingStrategy, Update, make_strategy

RULES = ExchangeRules()
_CONTEXT = Context("hierarchy", 1, 1, hashlib.sha256(b"model").hexdigest())


def examples_of(number: int) -> int:
    return 50 + 7 * number % 101


def play_clear(spec: ModelSpec, codec: str, sites: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Merge partial sums in the clear."""
    strategy = make_strategy("fedavg", {})
    assert isinstance(strategy, FoldingStrategy)
    is_difference = get_codec(codec).is_difference
    payloads = {number: make_update(spec, codec, number) for site in sites for number in site}

    def folded(numbers: Sequence[int]) -> Accumulator:
        accumulator = strategy.init(spec, is_difference=is_difference)
        for number in numbers:
            update = get_codec(codec).decode(spec, payloads[number], kind="update")
            strategy.fold(accumulator, update, examples_of(number))
        return accumulator

    flat = folded(sorted(payloads))
    partials = [folded(site).to_bytes() for site in sites]
    merged = Accumulator.from_bytes(partials[-1])
    for partial in partials[-2::-1]:  # in another order than they came
        merged = strategy.merge(merged, Accumulator.from_bytes(partial))
    base = _nothing(spec)
    digests = [_digest(spec, strategy, total, base) for total in (flat, merged)]
    return _outcome(digests, sum(len(payload) for payload in payloads.values()), sum(len(data) for data in partials))


def play_masked(spec: ModelSpec, sites: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Add up under masks, devices by themselves and sites for theirs."""
    form = ValueForm(spec, "update", weights="signs")
    numbers = sorted(itertools.chain.from_iterable(sites))
    layout = form.layout(len(numbers))
    rings = {number: form.encode(_told(spec, number), Metrics()).to_ring(layout) for number in numbers}
    by_site = {}
    for i, site in enumerate(sites):
        by_site[f"site-{i}"] = total = RingVector.zeros(layout)
        for number in site:
            total.add(rings[number])
    flat, flat_bytes = exchange({f"device-{number}": ring for number, ring in rings.items()}, layout)
    summed, sites_bytes = exchange(by_site, layout)
    strategy = make_strategy("fedavg", {})
    assert isinstance(strategy, FoldingStrategy)
    digests = []
    for ring in (flat, summed):
        accumulator = strategy.init(spec, is_difference=True)
        strategy.fold_sum(accumulator, form.decode_sum(ring, len(numbers)), {})
        digests.append(_digest(spec, strategy, accumulator, _nothing(spec)))
    return _outcome(digests, flat_bytes, sites_bytes)


def exchange(rings: Mapping[str, RingVector], layout: RingLayout) -> tuple[RingVector, int]:
    """Play an exchange that nobody leaves; gives the sum, and the bytes of all members' messages."""
    members = {name: Participant.begin(_CONTEXT, RULES, name, None) for name in rings}
    messages = [member.keys for member in members.values()]
    combiner = Combiner(_CONTEXT, RULES, layout, {name: member.keys for name, member in members.items()})
    for name, member in members.items():
        messages.append(member.share(combiner.keys_for(name), len(members), None))
        combiner.take_shares(name, messages[-1])
    combiner.start_masking()
    for name, member in members.items():
        messages.append(member.mask(combiner.sealed_for(name), rings[name]))
        combiner.take_masked(name, messages[-1])
    combiner.start_reveal()
    for name, member in members.items():
        messages.append(member.reveal(combiner.survived_for(name)))
        combiner.take_reveal(name, messages[-1])
    return combiner.finish(), sum(len(message) for message in messages)


def _told(spec: ModelSpec, number: int) -> Update:
    return get_codec("sign").decode(spec, make_update(spec, "sign", number), kind="update")


def _nothing(spec: ModelSpec) -> State:
    return {name: np.zeros(shape, np.float32) for name, shape in spec.tensor_shapes().items()}


def _digest(spec: ModelSpec, strategy: FoldingStrategy, total: Accumulator, base: State) -> str:
    state, _ = strategy.finish(total, base if total.is_difference else None, None)
    return weights_digest(spec, state)


def _outcome(digests: Sequence[str], flat_bytes: int, sites_bytes: int) -> dict[str, Any]:
    return {
        "is_same": digests[0] == digests[1],
        "weights_digest": digests[0],
        "centre_bytes": {"flat": flat_bytes, "sites": sites_bytes},
    }


def play(model: str, sites: int, devices: int) -> dict[str, Any]:
    """Play all three ways, of so many sites of so many devices each."""
    spec = build(model)
    of_sites = [range(site * devices, (site + 1) * devices) for site in range(sites)]
    return {
        "model": model,
        "weights": spec.num_binary_weights,
        "sites": sites,
        "devices_per_site": devices,
        **{codec: play_clear(spec, codec, of_sites) for codec in ("int8", "sign")},
        "masked": play_masked(spec, of_sites),
    }


def main() -> int:
    """Run it; 1 when sites change the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cnv", help="a network of the zoo (default: cnv)")
    parser.add_argument("--sites", type=int, default=4, help=f"at least {RULES.min_members} (default: 4)")
    parser.add_argument("--devices", type=int, default=15, help="of each site (default: 15)")
    parser.add_argument("--json", metavar="PATH", help="write the result here; - = standard output")
    args = parser.parse_args()
    if args.sites < RULES.min_members or args.devices < 1:
        parser.error(f"--sites must be at least {RULES.min_members}, members of an exchange, and --devices at least 1")
    check_destination(args.json, "--json")
    result = play(args.model, args.sites, args.devices)
    ways = ("int8", "sign", "masked")
    for way in ways:
        flat, through_sites = (result[way]["centre_bytes"][key] for key in ("flat", "sites"))
        print(
            f"{way}: {'the same model' if result[way]['is_same'] else 'ANOTHER MODEL'}; the centre takes in "
            f"{format_bytes(flat)} from {args.sites * args.devices} devices, {format_bytes(through_sites)} from "
            f"{args.sites} sites",
            file=sys.stderr,
        )
    write_json(result, args.json)
    return 0 if all(result[way]["is_same"] for way in ways) else 1


if __name__ == "__main__":
    sys.exit(main())

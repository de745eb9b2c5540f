"""What codecs cost: bits a weight, time to encode and decode, and updates that a coordinator adds up in a second.

    python -m benchmarks.codecs --json PATH

Latent weights start from the seed and move by a normal draw of 13 steps of 1/127, as far as those of the MLP do in 60
steps on MNIST. Times are of the processor, in one thread, the median of several calls;
encoding starts at int8 latent weights, decoding ends at them: where a codec writes differences, both include what is
between.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bnncore.codec import CODECS, Difference, DifferenceCodec, SignTensor, StateCodec, encode_signs, fold_many
from bnncore.engine import Engine, isa_selected
from bnncore.spec import ModelSpec
from bnncore.state import State
from bnncore.zoo import binarynet, mlp

AT_ONCE = 8
"""Updates that are decoded and added up together."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="calls of which the median is taken (7)")
    parser.add_argument("--json", type=Path, required=True, help="where to write the outcome")
    arguments = parser.parse_args()
    outcome: dict[str, Any] = {"isa": isa_selected(), "models": {}}
    for spec in (mlp(), binarynet()):
        before, after = states(spec)
        outcome["models"][spec.name] = {
            "weights": spec.num_binary_weights,
            "codecs": {name: measure(codec, spec, before, after, arguments.repeats) for name, codec in CODECS.items()},
        }
        print(table(spec, outcome["models"][spec.name]["codecs"]), flush=True)
    spec = binarynet()
    rates = {c.name: fold(c, spec, arguments.repeats) for c in CODECS.values() if isinstance(c, DifferenceCodec)}
    outcome["fold"] = {"weights": spec.num_binary_weights, "at_once": AT_ONCE, "updates_per_s": rates}
    for name, rate in rates.items():
        print(f"{name}: {rate['fold_only']:.0f} updates/s added up, {rate['with_decoding']:.0f} with their decoding")
    arguments.json.write_text(json.dumps(outcome, indent=2) + "\n")
    return 0


def states(spec: ModelSpec) -> tuple[State, State]:
    """Give a model, and what local training could make of it."""
    engine = Engine(spec, batch_size=1, seed=1)
    engine.initialise(1)
    before = engine.state()
    rng = np.random.default_rng(2)
    after: State = {}
    for tensor in spec.tensors:
        if tensor.role == "weight":
            moves = np.rint(rng.normal(0, 13, tensor.shape))
            after[tensor.name] = np.clip(before[tensor.name] + moves, -127, 127).astype(np.int8)
        else:
            after[tensor.name] = np.abs(rng.normal(1, 0.3, tensor.shape)).astype(np.float32)
    return before, after


def measure(
    codec: StateCodec | DifferenceCodec, spec: ModelSpec, before: State, after: State, repeats: int
) -> dict[str, float]:
    """Give bits a weight each way, and milliseconds to make and to use an update."""
    if isinstance(codec, DifferenceCodec):
        down = len(codec.encode(spec, difference(codec, spec, before, after), kind="step"))
        encode_ms, up = timed(
            repeats, lambda: codec.encode(spec, difference(codec, spec, before, after), kind="update")
        )
        decode_ms, _ = timed(repeats, lambda: apply(codec.decode(spec, up, kind="update"), before))
    else:
        down = len(codec.encode(spec, after, kind="model"))
        encode_ms, up = timed(repeats, lambda: codec.encode(spec, after, kind="update"))
        decode_ms, _ = timed(repeats, lambda: codec.decode(spec, up, kind="update"))
    weights = spec.num_binary_weights
    bits = {"up_bits_per_weight": 8 * len(up) / weights, "down_bits_per_weight": 8 * down / weights}
    return {**bits, "encode_ms": encode_ms, "decode_ms": decode_ms}


def difference(codec: DifferenceCodec, spec: ModelSpec, before: State, after: State) -> Difference:
    """Tell by signs what local training did."""
    found: Difference = {}
    for tensor in spec.tensors:
        name = tensor.name
        if tensor.role == "weight":
            found[name] = encode_signs(after[name], before[name], density=codec.density)[0]
        else:
            found[name] = after[name] if tensor.is_statistic else after[name] - before[name]
    return found


def apply(told: Difference, replica: State) -> None:
    """Bring a copy of a replica to where it is told to be."""
    for name, signs in told.items():
        if isinstance(signs, SignTensor):
            signs.apply_to(replica[name].copy())


def fold(codec: DifferenceCodec, spec: ModelSpec, repeats: int) -> dict[str, float]:
    """Give the updates that are added up in a second, eight at a time, without and with their decoding."""
    payload = codec.encode(spec, difference(codec, spec, *states(spec)), kind="update")
    sums = {tensor.name: np.zeros(tensor.shape, np.int64) for tensor in spec.tensors if tensor.role == "weight"}

    def decode() -> list[Difference]:
        return [codec.decode(spec, payload, kind="update") for _ in range(AT_ONCE)]

    def add(updates: list[Difference]) -> None:
        for name, total in sums.items():
            tensors = [signs for update in updates if isinstance(signs := update[name], SignTensor)]
            fold_many(total, tensors, range(1, AT_ONCE + 1))

    decoded = decode()
    add_ms, _ = timed(repeats, lambda: add(decoded))
    both_ms, _ = timed(repeats, lambda: add(decode()))
    return {"fold_only": AT_ONCE / add_ms * 1e3, "with_decoding": AT_ONCE / both_ms * 1e3}


def timed(repeats: int, call: Callable[[], Any]) -> tuple[float, Any]:
    """Give the median of a call's processor time, ms, and what it returns."""
    found: list[float] = []
    for _ in range(repeats):
        began = time.process_time()
        result = call()
        found.append(1e3 * (time.process_time() - began))
    return statistics.median(found), result


def table(spec: ModelSpec, codecs: dict[str, dict[str, float]]) -> str:
    lines = [f"{spec.name}, {spec.num_binary_weights:,} weights", "| codec | up | down | encode, ms | decode, ms |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for name, row in codecs.items():
        bits = f"{row['up_bits_per_weight']:.3f} | {row['down_bits_per_weight']:.3f}"
        lines.append(f"| `{name}` | {bits} | {row['encode_ms']:.1f} | {row['decode_ms']:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

"""Updates that follow from (seed, round, device) alone, so that what a round must come to can be computed beside it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from benchmarks.streaming_ends import make_update
from bnncore.codec import get_codec
from bnncore.spec import ModelSpec


def device_name(number: int) -> str:
    return f"device-{number}"


def number_of(device_id: str) -> int:
    return int(device_id.rpartition("-")[2])


def examples_of(number: int) -> int:
    """Training samples that a device says it has; different ones, so that a mean tells whose updates are in it."""
    return 50 + 7 * number % 101


def payload_of(spec: ModelSpec, codec: str, seed: int, round_number: int, number: int) -> bytes:
    """The update of a device in a round."""
    return make_update(spec, codec, [seed, round_number, number])


def mean_weights(
    spec: ModelSpec, codec: str, seed: int, round_number: int, numbers: Iterable[int]
) -> dict[str, NDArray[np.float64]]:
    """Return what FedAvg of states must make of these devices' updates.

    It is the mean of int8 weights by examples, in whole numbers until one division.
    """
    names = [tensor.name for tensor in spec.tensors if tensor.role == "weight"]
    sums: dict[str, NDArray[np.int64]] = {}
    examples = 0
    for number in numbers:
        payload = payload_of(spec, codec, seed, round_number, number)
        update = get_codec(codec).decode(spec, payload, kind="update")
        for name in names:
            array = update[name]
            assert isinstance(array, np.ndarray)
            assert array.dtype == np.int8
            sums[name] = sums.get(name, 0) + array.astype(np.int64) * examples_of(number)
        examples += examples_of(number)
    return {name: total / (127.0 * examples) for name, total in sums.items()}

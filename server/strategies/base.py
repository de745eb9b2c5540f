"""The contract of a strategy: a pure function of explicit, serialisable state.

A strategy has no clock, no I/O, no sampling and no logging. It sees a round's updates as a stream and keeps only an
``Accumulator`` of integers, so that memory is O(model), not O(model x cohort), and so that neither the order of
arrival nor the way partial sums are merged can enter the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from bnncore.errors import CheckpointError, SpecError
from bnncore.spec import ModelSpec
from bnncore.state import State

_COUNTS = "accumulator.counts"
_SPEC = "accumulator.spec"


@dataclass
class Accumulator:
    """Partial sums of a round.

    Attributes:
      spec: the network.
      sums: per tensor of the model, in the spec's order: ``int64`` of its shape, in the strategy's fixed-point units.
      num_examples: sum of the weights of the updates folded in.
      num_updates: how many updates were folded in.
    """

    spec: ModelSpec
    sums: dict[str, NDArray[np.int64]]
    num_examples: int = 0
    num_updates: int = 0

    def to_bytes(self) -> bytes:
        """Serialise, so that another process can merge or continue it."""
        counts = np.array([self.num_examples, self.num_updates], dtype=np.int64)
        spec = np.frombuffer(self.spec.to_json().encode(), dtype=np.uint8)
        return save({**self.sums, _COUNTS: counts, _SPEC: spec})

    @classmethod
    def from_bytes(cls, data: bytes) -> Accumulator:
        """Read what ``to_bytes`` wrote.

        Raises:
          CheckpointError: the bytes are truncated or not an accumulator.
        """
        try:
            tensors = load(data)
            spec = ModelSpec.from_json(tensors[_SPEC].tobytes())
            sums = {name: tensors[name] for name in spec.tensor_shapes()}
            counts = tensors[_COUNTS]
        except (SafetensorError, SpecError, KeyError) as error:
            raise CheckpointError(
                f"an accumulator (safetensors with {_COUNTS!r}) is required, got {len(data)} bytes that are not one "
                f"({error}); fold the round's updates again"
            ) from error
        return cls(spec, sums, num_examples=int(counts[0]), num_updates=int(counts[1]))


class Strategy(Protocol):
    """A rule that aggregates. Implementations are stateless: everything lives in the accumulator."""

    name: str

    def init(self, spec: ModelSpec) -> Accumulator:
        """Return the accumulator of no updates."""

    def fold(self, accumulator: Accumulator, state: State, num_examples: int) -> None:
        """Add one update to ``accumulator`` in place; ``state`` is left as it was.

        Args:
          accumulator: from ``init`` of the same spec.
          state: an update's tensors, valid for the spec, statistics included.
          num_examples: the update's weight, 1 to ``MAX_EXAMPLES``.

        Raises:
          PayloadError: a value or a weight lies outside what the fixed point can carry. The accumulator is unchanged.
        """

    def merge(self, accumulator: Accumulator, other: Accumulator) -> Accumulator:
        """Return the accumulator of the updates of both, exactly; neither is changed."""

    def finish(self, accumulator: Accumulator) -> State:
        """Return the next model: float32 tensors, statistics included.

        Raises:
          PayloadError: nothing was folded in.
        """

"""The contract of a strategy: a pure function of explicit, serialisable state.

A strategy has no clock, no I/O, no sampling and no logging. Its parameters are the fields of its (frozen) dataclass,
set by ``strategy_params`` of the job; everything else comes in and goes out as arguments. What a strategy must remember
from round to round (the moments of a server optimizer) is a dictionary of arrays, the *memory*, which the coordinator
keeps beside the model version.

A ``FoldingStrategy`` sees a round's updates as a stream and keeps only an ``Accumulator`` of integers, so that memory
is O(model), not O(model x cohort), and so that neither the order of arrival nor the way partial sums are merged can
enter the result.

A ``CohortStrategy`` compares updates with each other: it reads all of them, block by block, from where they were put
aside.

An update is either a state (the parameters after local training) or a difference to the model that the round started
from. A difference has the same tensors; only its running statistics are themselves, as statistics are taken anew.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from bnncore.codec import SignTensor, fold_many
from bnncore.errors import CheckpointError, PayloadError, SpecError
from bnncore.secure.scales import Scales
from bnncore.secure.values import ValueSum
from bnncore.spec import ModelSpec
from bnncore.state import State, to_float32
from server.errors import InvalidJobError

_COUNTS = "accumulator.counts"
_SPEC = "accumulator.spec"


Update = Mapping[str, NDArray[Any] | SignTensor]
"""An update by tensor: a state, or a difference, whose weights are float32, int16 in units of 1/127, or signs."""

_FOLDED_AT_ONCE = 8


@dataclass
class Accumulator:
    """Partial sums of a round.

    Attributes:
      spec: the network.
      sums: per tensor of the model, in the spec's order: ``int64`` of its shape, in the strategy's fixed-point units.
      is_difference: whether differences are summed, not states.
      total_weight: sum of the weights of the updates folded in.
      num_updates: how many updates were folded in.

    Signs of weights wait until there are several, which together cost little more than one; ``settle`` adds them.
    """

    spec: ModelSpec
    sums: dict[str, NDArray[np.int64]]
    is_difference: bool = False
    total_weight: int = 0
    num_updates: int = 0
    _waiting: list[tuple[dict[str, SignTensor], int]] = field(default_factory=list)

    @classmethod
    def empty(cls, spec: ModelSpec, *, is_difference: bool) -> Accumulator:
        """Return the sums of no updates."""
        sums = {name: np.zeros(shape, dtype=np.int64) for name, shape in spec.tensor_shapes().items()}
        return cls(spec, sums, is_difference)

    def add_signs(self, tensors: dict[str, SignTensor], weight: int) -> None:
        """Add ``weight`` times signs, in fine units, to the sums of their tensors, now or a little later."""
        self._waiting.append((tensors, weight))
        if len(self._waiting) == _FOLDED_AT_ONCE:
            self.settle()

    def settle(self) -> None:
        """Add what is waiting; the sums are complete then."""
        for name in self._waiting[0][0] if self._waiting else ():
            fold_many(self.sums[name], [signs[name] for signs, _ in self._waiting], [w for _, w in self._waiting])
        self._waiting.clear()

    def to_bytes(self) -> bytes:
        """Serialise, so that another process can merge or continue it."""
        self.settle()
        counts = np.array([self.total_weight, self.num_updates, self.is_difference], dtype=np.int64)
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
            total_weight, num_updates, is_difference = (int(count) for count in tensors[_COUNTS])
        except (SafetensorError, SpecError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"an accumulator (safetensors with {_COUNTS!r}) is required, got {len(data)} bytes that are not one "
                f"({error}); fold the round's updates again"
            ) from error
        return cls(spec, sums, bool(is_difference), total_weight, num_updates)


@dataclass(frozen=True)
class Strategy(ABC):
    """A rule that aggregates; its fields are the job's ``strategy_params``."""

    name: ClassVar[str]

    @property
    def needs_differences(self) -> bool:
        """Whether updates that are states are to be turned into differences first."""
        return False

    @property
    def late_rounds(self) -> int:
        """For how many rounds an update may still come after its own has ended; 0: a round waits for all it needs."""
        return 0

    @property
    def proximal_mu(self) -> float:
        """How strongly devices pull their weights back to the round's model after every local step; 0: not at all."""
        return 0.0

    def weight_of(self, num_examples: int, staleness: int) -> int:
        """Return the weight of an update: its examples, or less when rounds have ended since its task was given.

        Args:
          num_examples: as the device says; what is not positive stays so.
          staleness: how many rounds have ended.
        """
        del staleness
        return num_examples

    def parameters(self) -> dict[str, float]:
        """Return every parameter with its value."""
        return {parameter.name: getattr(self, parameter.name) for parameter in fields(self)}

    def _require(self, name: str, low: float, high: float, *, above: bool = False) -> None:
        """Check a parameter's range: ``low <= value <= high``, or ``low < value <= high``.

        Raises:
          InvalidJobError: the value is not a finite number in the range.
        """
        value = getattr(self, name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or not (low < value if above else low <= value) or value > high:
            interval = f"{'above' if above else 'from'} {low:g} to {high:g}"
            raise InvalidJobError(f"{name} of strategy {self.name!r} must be {interval}, got {value!r}")


class FoldingStrategy(Strategy):
    """A strategy that takes updates one by one."""

    def init(self, spec: ModelSpec, *, is_difference: bool = False) -> Accumulator:
        """Return the accumulator of no updates.

        Args:
          spec: the network.
          is_difference: whether the updates will be differences; always so where ``needs_differences``.
        """
        return Accumulator.empty(spec, is_difference=is_difference or self.needs_differences)

    @abstractmethod
    def fold(self, accumulator: Accumulator, update: Update, weight: int) -> None:
        """Add one update to ``accumulator`` in place; ``update`` is left as it was.

        Args:
          accumulator: from ``init`` of the same spec.
          update: tensors of the spec, statistics included: a valid state, or a difference where the accumulator sums
            differences.
          weight: the update's weight (how many examples it was trained on), 1 to ``MAX_WEIGHT``.

        Raises:
          PayloadError: a value or the weight lies outside what the fixed point can carry. The accumulator is unchanged.
        """

    @abstractmethod
    def fold_sum(self, accumulator: Accumulator, total: ValueSum, scales: Scales) -> None:
        """Add the sum of many updates, each of weight 1, to ``accumulator`` in place: what secure aggregation gives.

        Args:
          accumulator: from ``init`` of the same spec; it sums differences, unless ``total`` holds statistics alone.
          total: the sum.
          scales: magnitudes that the updates' signs had in common; empty: the mean of their own.

        Raises:
          PayloadError: they are more than a round carries. The accumulator is unchanged.
        """

    @abstractmethod
    def merge(self, accumulator: Accumulator, other: Accumulator) -> Accumulator:
        """Return the accumulator of the updates of both, exactly; neither is changed."""

    @abstractmethod
    def finish(self, accumulator: Accumulator, base: State | None, memory: State | None) -> tuple[State, State | None]:
        """Return the next model and what is to be remembered.

        Args:
          accumulator: the round's; it is left as it was.
          base: the full state that the round started from; None is enough where states were summed.
          memory: what the round before returned; None in the first.

        Returns:
          float32 tensors in the spec's order, statistics included; and the memory for the next round, None when the
          strategy keeps none.

        Raises:
          PayloadError: nothing was folded in.
        """


class UpdateReader(Protocol):
    """One update of a round, read in pieces from where it was put aside."""

    @property
    def name(self) -> str:
        """The device's name; ties between updates are decided by it."""

    def read(self, tensor: str, block: slice) -> NDArray[Any]:
        """Return a piece of a flattened tensor, in the dtype of the update."""


class CohortStrategy(Strategy):
    """A strategy that needs all updates of a round side by side.

    It reads them in blocks of coordinates, so that its memory is O(block x cohort), whatever the model. Weights do not
    count: a device could claim any.
    """

    @abstractmethod
    def aggregate(
        self, spec: ModelSpec, readers: Sequence[UpdateReader], base: State | None, *, is_difference: bool
    ) -> State:
        """Return the next model: float32 tensors in the spec's order, statistics included.

        Args:
          spec: the network.
          readers: the round's updates, in any order; all states or all differences, checked by ``check_values``.
          base: the full state that the round started from; None is enough for states.
          is_difference: which of the two the updates are.

        Raises:
          PayloadError: there is no update.
        """


def difference_of(spec: ModelSpec, update: Update, base: State) -> Update:
    """Turn a state into its difference to ``base``, the model as its device received it.

    Weights of int8 on both sides give int16 in units of 1/127, exactly; otherwise float32.

    Raises:
      PayloadError: the update is a difference already.
    """
    difference: dict[str, NDArray[Any]] = {}
    for tensor in spec.tensors:
        new, old = update[tensor.name], base[tensor.name]
        if isinstance(new, SignTensor):
            raise PayloadError(f"tensor {tensor.name!r} must be that of a state, got signs of a difference")
        if tensor.is_statistic:
            difference[tensor.name] = new
        elif new.dtype == np.int8 and old.dtype == np.int8:
            difference[tensor.name] = np.subtract(new, old, dtype=np.int16)
        else:
            difference[tensor.name] = to_float32(new) - to_float32(old)
    return difference

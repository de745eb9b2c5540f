"""A round's updates on their way into the next model: folded into a sum as they come, or put aside until the end.

Blocking; one thread at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bnncore.codec import SignTensor, get_codec
from bnncore.errors import PayloadError
from bnncore.federated.summed import tell_whole
from bnncore.secure.metrics import Metrics
from bnncore.secure.rounding import Told
from bnncore.secure.scales import scales_to_bytes
from bnncore.secure.values import ValueSum
from bnncore.spec import ModelSpec, TensorSpec
from bnncore.state import State
from server.coordinator.remembered import Remembered, recall
from server.coordinator.spool import Spool
from server.coordinator.versions import read_deployed_state, read_state
from server.jobs import JobConfig
from server.storage.base import VersionRecord
from server.storage.payloads import BlobStore
from server.strategies import (
    Accumulator,
    FoldingStrategy,
    Update,
    check_total,
    check_values,
    difference_of,
    make_strategy,
)

_SPOOLED_BYTES = 4
"""Of a value that is put aside: float32, or int32 in fine units."""


def is_mergeable(config: JobConfig) -> bool:
    """Say whether a job's updates may be added up in several places, to sums that merge exactly."""
    if config.secure_aggregation is not None or config.privacy is not None:
        return False
    strategy = make_strategy(config.strategy, config.strategy_params)
    return isinstance(strategy, FoldingStrategy) and strategy.late_rounds == 0


class Aggregation:
    """What a job's strategy has of one round."""

    def __init__(self, config: JobConfig, spec: ModelSpec, blobs: BlobStore, base: VersionRecord) -> None:
        self._spec = spec
        self._blobs = blobs
        self._base = base
        self._local = config.local_names
        self._deployed: State | None = None
        self._unsent: Update | None = None
        codec, kind = config.update_form(base.version + 1)
        # Statistics that travel alone are averaged, whatever merges weights.
        self._takes_statistics = kind == "statistics"
        self._strategy = (
            make_strategy("fedavg", {})
            if self._takes_statistics
            else make_strategy(config.strategy, config.strategy_params)
        )
        self._takes_states = not get_codec(codec).is_difference
        self._config = config
        is_told = config.secure_aggregation is not None or config.privacy is not None
        self._is_difference = (
            self._strategy.needs_differences or not self._takes_states or (is_told and not self._takes_statistics)
        )
        self._bounded: ValueSum | None = None
        """Under privacy: the sum of what came in the clear, which has no noise yet."""
        if config.privacy is not None and config.secure_aggregation is None:
            self._bounded = config.value_form(base.version + 1, recall(blobs, base).clip).nothing()
        self._accumulator: Accumulator | None = None
        self._weight_apart = 0
        """Of updates that are added up elsewhere."""
        self._spool: Spool | None = None
        self._scales = b""
        self._clip: float | None = None

    @property
    def spooled_bytes(self) -> int:
        """Most bytes that one update takes on disk until the end; 0 where updates are folded as they come."""
        if isinstance(self._strategy, FoldingStrategy):
            return 0
        return _SPOOLED_BYTES * self._spec.num_values

    def add(self, device_id: str, update: Update, weight: int, base: VersionRecord) -> None:
        """Take one update in, of a device that started from ``base``.

        Raises:
          PayloadError: the strategy cannot take it; nothing has changed.
        """
        if self._bounded is not None:
            form = self._bounded.form
            told: Told = update
            if self._takes_states and not self._takes_statistics:
                state = {name: array for name, array in update.items() if not isinstance(array, SignTensor)}
                told, _ = tell_whole(form, state, self._read_deployed(base), None, {})
            self._bounded = self._bounded.plus(form.encode(told, Metrics()))
            return
        update = self._prepared(update, base)
        if isinstance(self._strategy, FoldingStrategy):
            accumulator = self._sums(self._strategy)
            if self._weight_apart:
                check_total(accumulator.total_weight + self._weight_apart + weight)
            self._strategy.fold(accumulator, update, weight)
            return
        check_values(self._spec, update, weight, is_difference=self._is_difference)
        if self._spool is None:
            self._spool = Spool(self._spec, self._blobs.temporary_file())
        self._spool.append(device_id, update)

    def check(self, update: Update, weight: int) -> None:
        """Check an update by itself, of a device that started from the round's version.

        Raises:
          PayloadError: the strategy cannot take it.
        """
        update = self._prepared(update, self._base)
        check_values(self._spec, update, weight, is_difference=self._is_difference)

    def set_apart(self, weight: int) -> None:
        """Count an update that is added up elsewhere, and comes in by ``merge``, or by ``add`` after all.

        Raises:
          PayloadError: it is more than a round carries; nothing has changed.
        """
        here = 0 if self._accumulator is None else self._accumulator.total_weight
        check_total(here + self._weight_apart + weight)
        self._weight_apart += weight

    def end_apart(self) -> None:
        """Note that what was set apart comes in now."""
        self._weight_apart = 0

    def merge(self, data: bytes, *, num_updates: int, weight: int) -> None:
        """Take in what ``to_bytes`` wrote elsewhere.

        Args:
          data: the sum.
          num_updates: that must be in it.
          weight: of them all.

        Raises:
          BitfleetError: it is not the sum of those, or not one of this round; nothing has changed.
        """
        assert isinstance(self._strategy, FoldingStrategy)  # of others no sum is made
        other, sums = Accumulator.from_bytes(data), self._sums(self._strategy)
        told = (other.spec, other.is_difference, other.num_updates, other.total_weight)
        wanted = (self._spec, self._is_difference, num_updates, weight)
        if told != wanted:
            raise PayloadError(
                f"the sum of {num_updates} updates of weight {weight} is wanted, got one of {other.num_updates} of "
                f"weight {other.total_weight}, or of another network"
            )
        self._accumulator = self._strategy.merge(sums, other)

    def to_bytes(self) -> bytes:
        """Write the sum down, for ``merge`` elsewhere."""
        assert isinstance(self._strategy, FoldingStrategy)
        return self._sums(self._strategy).to_bytes()

    def _sums(self, strategy: FoldingStrategy) -> Accumulator:
        if self._accumulator is None:
            self._accumulator = strategy.init(self._spec, is_difference=self._is_difference)
        return self._accumulator

    def _prepared(self, update: Update, base: VersionRecord) -> Update:
        """Return an update as the strategy takes it, of a device that started from ``base``."""
        if self._takes_statistics:
            update = {**self._read_deployed(base), **update}
        elif self._local:
            update = {**self._local_part(), **update}
        if self._is_difference and self._takes_states:
            update = difference_of(self._spec, update, self._read_deployed(base))
        return update

    def add_sum(self, total: ValueSum) -> None:
        """Take in the sum of a cohort's updates, whose single ones nobody but their devices knows."""
        assert isinstance(self._strategy, FoldingStrategy)  # of others the job is refused
        scales = self._config.sign_scales(self._base.version + 1, recall(self._blobs, self._base).scales)
        self._strategy.fold_sum(self._sums(self._strategy), total, scales)
        self._scales = scales_to_bytes(self._spec, total.mean_scales, self._local)
        choice, privacy = self._config.privacy, total.form.privacy
        if choice is not None and privacy is not None:
            self._clip = choice.next_clip(privacy.clip, total.within_clip)

    def finish(self, put: Callable[[bytes], str]) -> tuple[State, str | None]:
        """Return the next model's state, and the digest of the payload of what the strategy remembers, if anything.

        Where statistics travel alone the state holds nothing else.

        Args:
          put: makes a payload durable and returns its digest.

        Raises:
          PayloadError: there was no update.
        """
        if self._bounded is not None and self._bounded.num_updates:
            self.add_sum(self._bounded.with_noise())
        state, memory_digest = self._merge(put)
        if self._local:  # whatever a strategy made of what did not change
            own = read_state(self._blobs, self._spec, self._base)
            state = {name: own[name] if name in self._local else array for name, array in state.items()}
        return state, memory_digest

    def _merge(self, put: Callable[[bytes], str]) -> tuple[State, str | None]:
        start = read_state(self._blobs, self._spec, self._base) if self._is_difference else None
        if not isinstance(self._strategy, FoldingStrategy):
            readers = [] if self._spool is None else self._spool.readers()
            return self._strategy.aggregate(self._spec, readers, start, is_difference=self._is_difference), None
        accumulator = self._sums(self._strategy)
        if self._takes_statistics:
            state, _ = self._strategy.finish(accumulator, None, None)
            statistics = {tensor.name: state[tensor.name] for tensor in self._spec.tensors if tensor.is_statistic}
            return statistics, self._base.memory_digest
        state, memory = self._strategy.finish(accumulator, start, recall(self._blobs, self._base).memory)
        kept = Remembered(memory, self._scales, self._clip).to_bytes()
        return state, None if kept is None else put(kept)

    def close(self) -> None:
        """Give back what lies on disk."""
        if self._spool is not None:
            self._spool.close()

    def _local_part(self) -> Update:
        """Return what updates leave out: tensors that are the same in all versions."""
        if self._unsent is None:
            deployed = self._read_deployed(self._base)
            local = [tensor for tensor in self._spec.tensors if tensor.name in self._local]
            self._unsent = {
                tensor.name: deployed[tensor.name]
                if self._takes_states or tensor.is_statistic
                else _no_difference(tensor)
                for tensor in local
            }
        return self._unsent

    def _read_deployed(self, base: VersionRecord) -> State:
        """Return a model as devices received it; the round's own is kept."""
        if base != self._base:
            return read_deployed_state(self._blobs, self._spec, base)
        if self._deployed is None:
            self._deployed = read_deployed_state(self._blobs, self._spec, base)
        return self._deployed


def _no_difference(tensor: TensorSpec) -> NDArray[np.float32] | SignTensor:
    if tensor.role != "weight":
        return np.zeros(tensor.shape, np.float32)
    rows, row_bytes = tensor.shape[0], (math.prod(tensor.shape[1:]) + 7) // 8
    return SignTensor(tensor.shape, np.zeros(rows, np.uint16), np.zeros((rows, row_bytes), np.uint8))

"""A round's updates on their way into the next model: folded into a sum as they come, or put aside until the end.

Blocking; one thread at a time.
"""

from __future__ import annotations

from safetensors.numpy import load, save

from bnncore.codec import get_codec
from bnncore.spec import ModelSpec
from bnncore.state import State
from server.coordinator.spool import Spool
from server.coordinator.versions import read_deployed_state, read_state
from server.jobs import JobConfig
from server.storage.base import BlobStore, VersionRecord
from server.strategies import Accumulator, FoldingStrategy, Update, check_values, difference_of, make_strategy


class Aggregation:
    """What a job's strategy has of one round."""

    def __init__(self, config: JobConfig, spec: ModelSpec, blobs: BlobStore, base: VersionRecord) -> None:
        self._spec = spec
        self._blobs = blobs
        self._base = base
        self._deployed: State | None = None
        codec, kind = config.update_form(base.version + 1)
        # Statistics that travel alone are averaged, whatever merges weights.
        self._takes_statistics = kind == "statistics"
        self._strategy = (
            make_strategy("fedavg", {})
            if self._takes_statistics
            else make_strategy(config.strategy, config.strategy_params)
        )
        self._takes_states = not get_codec(codec).is_difference
        self._is_difference = self._strategy.needs_differences or not self._takes_states
        self._accumulator: Accumulator | None = None
        self._spool: Spool | None = None

    def add(self, device_id: str, update: Update, weight: int, base: VersionRecord) -> None:
        """Take one update in, of a device that started from ``base``.

        Raises:
          PayloadError: the strategy cannot take it; nothing has changed.
        """
        if self._takes_statistics:
            update = {**self._read_deployed(base), **update}
        if self._is_difference and self._takes_states:
            update = difference_of(self._spec, update, self._read_deployed(base))
        if isinstance(self._strategy, FoldingStrategy):
            if self._accumulator is None:
                self._accumulator = self._strategy.init(self._spec, is_difference=self._is_difference)
            self._strategy.fold(self._accumulator, update, weight)
            return
        check_values(self._spec, update, weight, is_difference=self._is_difference)
        if self._spool is None:
            self._spool = Spool(self._spec, self._blobs.temporary_file())
        self._spool.append(device_id, update)

    def finish(self) -> tuple[State, str | None]:
        """Return the next model's state, and the digest of the payload of what the strategy remembers, if anything.

        Where statistics travel alone the state holds nothing else.

        Raises:
          PayloadError: there was no update.
        """
        start = read_state(self._blobs, self._spec, self._base) if self._is_difference else None
        if not isinstance(self._strategy, FoldingStrategy):
            readers = [] if self._spool is None else self._spool.readers()
            return self._strategy.aggregate(self._spec, readers, start, is_difference=self._is_difference), None
        accumulator = self._accumulator or self._strategy.init(self._spec, is_difference=self._is_difference)
        remembered = self._base.memory_digest
        memory = None if remembered is None else load(self._blobs.get(remembered))
        if self._takes_statistics:
            state, _ = self._strategy.finish(accumulator, None, None)
            return {tensor.name: state[tensor.name] for tensor in self._spec.tensors if tensor.is_statistic}, remembered
        state, memory = self._strategy.finish(accumulator, start, memory)
        return state, None if memory is None else self._blobs.put(save(memory))

    def close(self) -> None:
        """Give back what lies on disk."""
        if self._spool is not None:
            self._spool.close()

    def _read_deployed(self, base: VersionRecord) -> State:
        """Return a model as devices received it; the round's own is kept."""
        if base != self._base:
            return read_deployed_state(self._blobs, self._spec, base)
        if self._deployed is None:
            self._deployed = read_deployed_state(self._blobs, self._spec, base)
        return self._deployed

"""The native engine: one object that trains one network in one planned block of memory.

The caller writes a batch into ``engine.input`` and ``engine.labels`` and calls ``step``; nothing is allocated from then
on. The same seed gives the same bits on any number of threads and any instruction set.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bnncore import _native
from bnncore.errors import BudgetError, ConfigurationError, DataError, SpecError
from bnncore.optimizer import OptimizerConfig, Preset, resolve_preset
from bnncore.spec import DenseBlock, ModelSpec
from bnncore.state import State, has_statistics, validate_state

__all__ = [
    "Engine",
    "MemoryPlan",
    "PlanEntry",
    "StepResult",
    "isa_available",
    "isa_selected",
    "permutation",
    "plan_memory",
    "read_rows",
]

MAX_BATCH_SIZE = 1 << 15
"""Largest batch: 32,768 samples * 127 * 255 still fits the int32 weight gradients of the first layer."""
MAX_FIRST_FEATURES = 1 << 16
"""Widest input: 255 * 2**16 * 127 still fits the int32 products of the batch-norm gradient."""


@dataclass(frozen=True)
class PlanEntry:
    """One tensor of the arena.

    Attributes:
      name: unique, e.g. ``dense1.latent``.
      role: weights, momenta, norm, activations, gradients, input or scratch.
      dtype: NumPy's name.
      shape: extents.
      num_bytes: size, padding that kernels may read included.
      offset: first byte in the arena.
      phases: of forward, loss, normalise, weights, inputs: those in which it holds something. All of them means that it
        lasts between steps.
      member: the thread whose scratch it is; -1 for what all threads share.
    """

    name: str
    role: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    offset: int
    phases: tuple[str, ...]
    member: int


@dataclass(frozen=True)
class MemoryPlan:
    """Where everything lies. ``peak_bytes`` is the whole arena."""

    entries: tuple[PlanEntry, ...]
    peak_bytes: int


@dataclass(frozen=True)
class StepResult:
    """Outcome of one batch: ``loss`` is the mean cross-entropy in nats, ``correct`` counts samples."""

    loss: float
    correct: int


class _HasOptimizer(Protocol):
    @property
    def optimizer(self) -> OptimizerConfig: ...


def _blocks(spec: ModelSpec) -> list[_native.BlockSpec]:
    if spec.input_features > MAX_FIRST_FEATURES:
        raise SpecError(
            f"the engine takes inputs of at most {MAX_FIRST_FEATURES} numbers, got {spec.input_features} "
            f"(input_shape {list(spec.input_shape)})"
        )
    return [_native_block(block) for block in spec.blocks]


def _native_block(block: DenseBlock) -> _native.BlockSpec:
    return _native.BlockSpec(
        linear=block.dense,
        norm=block.norm,
        in_height=1,
        in_width=1,
        in_channels=block.in_features,
        out_channels=block.out_features,
        kernel_height=1,
        kernel_width=1,
        stride=1,
        pad_height=0,
        pad_width=0,
        conv_height=1,
        conv_width=1,
        pool="none",
        pool_height=1,
        pool_width=1,
    )


def _params(preset: _HasOptimizer) -> _native.OptimizerParams:
    return _native.OptimizerParams(**dataclasses.asdict(preset.optimizer))


def _check_sizes(batch_size: int, threads: int) -> None:
    if not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise BudgetError(f"batch_size must lie in [1, {MAX_BATCH_SIZE}], got {batch_size}")
    if not 1 <= threads <= 256:
        raise ConfigurationError(f"threads must lie in [1, 256], got {threads}")


def _plan(entries: list[tuple[Any, ...]], peak_bytes: int) -> MemoryPlan:
    return MemoryPlan(tuple(PlanEntry(*entry) for entry in entries), peak_bytes)


def plan_memory(spec: ModelSpec, *, batch_size: int, preset: Preset | None = None, threads: int = 1) -> MemoryPlan:
    """Lay out the arena of an engine without allocating it.

    Raises:
      BudgetError: batch_size is out of range.
      SpecError: the input is wider than the engine takes.
    """
    _check_sizes(batch_size, threads)
    entries, peak = _native.plan(_blocks(spec), _params(preset or resolve_preset()), batch_size, threads)
    return _plan(entries, peak)


class Engine:
    """Trains and evaluates one network.

    Args:
      spec: the network.
      batch_size: samples a step; a batch is always full.
      preset: numeric choices and optimizer; the default preset when None.
      seed: drives initial weights and rounding.
      threads: threads of a step, the calling one included.

    Raises:
      BudgetError, ConfigurationError, SpecError: a size is out of range, or BITFLEET_ISA names an instruction set that
        this machine cannot run.

    Memory: ``plan.peak_bytes``, none of which is touched before ``initialise``, ``load_state`` or the first use of
    ``input``.

    Attributes:
      input: uint8 [batch_size, input_features], a view of the arena: write the batch here. Read as x = 2u - 255.
      labels: int32 [batch_size], likewise; each in [0, classes).
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        batch_size: int,
        preset: Preset | None = None,
        seed: int = 0,
        threads: int = 1,
    ) -> None:
        _check_sizes(batch_size, threads)
        self.spec = spec
        self.preset = preset or resolve_preset()
        self.batch_size = batch_size
        self.seed = seed
        isa_selected()  # a wrong BITFLEET_ISA is told before anything is laid out
        self._native = _native.Engine(_blocks(spec), _params(self.preset), batch_size, threads)
        self._ready = False
        self.input: NDArray[np.uint8] = self._native.input
        self.labels: NDArray[np.int32] = self._native.labels

    @property
    def plan(self) -> MemoryPlan:
        """Where everything of this engine lies."""
        return _plan(self._native.plan_entries, self._native.plan_peak_bytes)

    @property
    def arena(self) -> NDArray[np.uint8]:
        """The whole arena, uint8 [plan.peak_bytes], for inspection."""
        return self._native.arena

    @property
    def steps_done(self) -> int:
        """Steps since the last ``initialise`` or ``load_state``."""
        return int(self._native.steps_done)

    @property
    def saturated(self) -> int:
        """Elements of 8-bit gradients that did not fit their scale since then."""
        return int(self._native.saturated)

    def initialise(self, seed: int | None = None) -> None:
        """Start a model: weights from the counter-based generator, beta 0, statistics (0, 1), no optimizer history.

        The result is a function of (spec, optimizer, seed) alone. ``seed`` replaces the one given to the constructor.
        """
        if seed is not None:
            self.seed = seed
        self._native.initialise(self.seed)
        self._ready = True

    def step(self, step_scale: float = 1.0) -> StepResult:
        """Train on the batch in ``input`` and ``labels``; ``step_scale`` scales the optimizer's step sizes.

        Raises:
          DataError: a label lies outside [0, classes).
        """
        self._ensure_ready()
        try:
            return StepResult(*self._native.step(step_scale))
        except ValueError as error:
            raise DataError(str(error)) from None

    def step_traced(self, step_scale: float = 1.0) -> dict[str, Any]:
        """Like ``step``, and give every intermediate (see native/include/bnncore/trace.h); for tests."""
        self._ensure_ready()
        return self._native.step_traced(step_scale)

    def evaluate_batch(self, count: int) -> StepResult:
        """Loss and hits of the first ``count`` samples in ``input``, normalised by the running statistics.

        Raises:
          DataError: a label lies outside [0, classes), or count outside [1, batch_size].
        """
        self._ensure_ready()
        self._check_count(count)
        try:
            return StepResult(*self._native.evaluate(count))
        except ValueError as error:
            raise DataError(str(error)) from None

    def predict_batch(self, count: int) -> NDArray[np.int32]:
        """Classes, int32 [count], of the first ``count`` samples in ``input``. Labels are not used.

        Raises:
          DataError: count lies outside [1, batch_size].
        """
        self._ensure_ready()
        self._check_count(count)
        self.labels[:count] = 0
        return self._native.predict(count)

    def state(self, *, copy: bool = True) -> State:
        """Give the model: weights (int8, float32 under adam), beta and running statistics, in spec order.

        Args:
          copy: False gives views of the arena, which the next step changes, and takes no memory (but under bop, whose
            weights are unpacked).
        """
        self._ensure_ready()
        state: State = {}
        for i, block in enumerate(self.spec.blocks):
            beta, mean, mean_abs_dev = self._native.norm(i)
            state[f"{block.dense}.weight"] = self._native.weights(i)
            state[f"{block.norm}.beta"] = beta
            state[f"{block.norm}.mean"] = mean
            state[f"{block.norm}.mean_abs_dev"] = mean_abs_dev
        return {name: array.copy() for name, array in state.items()} if copy else state

    def load_state(self, state: State) -> None:
        """Replace the model; optimizer history is forgotten. Without statistics, those of the next steps are taken.

        Raises:
          ShapeError, PayloadError: the state is not a valid one of this network.
        """
        statistics = has_statistics(self.spec, state)
        validate_state(self.spec, state, statistics=statistics)
        self._native.reset(self.seed)
        for i, block in enumerate(self.spec.blocks):
            self._native.write_weights(i, np.ascontiguousarray(state[f"{block.dense}.weight"]))
            beta, mean, mean_abs_dev = self._native.norm(i)
            beta[:] = state[f"{block.norm}.beta"]
            if statistics:
                mean[:] = state[f"{block.norm}.mean"]
                mean_abs_dev[:] = state[f"{block.norm}.mean_abs_dev"]
        if statistics:
            self._native.keep_statistics()
        self._ready = True

    def _ensure_ready(self) -> None:
        if not self._ready:
            self.initialise()

    def _check_count(self, count: int) -> None:
        if not 1 <= count <= self.batch_size:
            raise DataError(f"count must lie in [1, {self.batch_size}] (the engine's batch size), got {count}")


def isa_available() -> list[str]:
    """Instruction sets that this machine can run, slowest first; the first is always ``portable``."""
    return list(_native.isa_available())


def isa_selected() -> str:
    """The instruction set in use: the one that BITFLEET_ISA names, else the fastest.

    Raises:
      ConfigurationError: BITFLEET_ISA names a set that this machine cannot run.
    """
    try:
        return str(_native.isa_selected())
    except ValueError as error:
        raise ConfigurationError(f"BITFLEET_ISA={os.environ.get('BITFLEET_ISA')!r}: {error}") from None


def permutation(count: int, seed: int, epoch: int) -> NDArray[np.uint32]:
    """Shuffle 0 .. count - 1 (uint32 [count]): a function of its arguments alone."""
    return _native.permutation(count, seed, epoch)


def read_rows(fd: int, offset: int, row_bytes: int, indices: NDArray[np.uint32], out: NDArray[np.uint8]) -> None:
    """Read rows of a file of equal rows, with pread: row i starts at ``offset + i * row_bytes``.

    Args:
      fd: an open file.
      offset: byte of row 0.
      row_bytes: size of a row.
      indices: uint32 [count], rows wanted.
      out: uint8 [>= count, row_bytes], C-contiguous; row j receives row indices[j].

    Raises:
      DataError: the file ends before a row does, or cannot be read.
    """
    try:
        _native.read_rows(fd, offset, row_bytes, np.ascontiguousarray(indices, np.uint32), out)
    except (RuntimeError, ValueError) as error:
        raise DataError(f"cannot read samples: {error}") from None

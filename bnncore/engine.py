"""The native engine: one object that trains one network in one planned block of memory.

The caller writes a batch into ``engine.input`` and ``engine.labels`` and calls ``step``; nothing is allocated from then
on. The same seed gives the same bits on any number of threads and any instruction set.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore import _native
from bnncore.errors import ConfigurationError, DataError, ShapeError
from bnncore.evaluator import Evaluator, StepResult
from bnncore.optimizer import Preset, resolve_preset
from bnncore.plan import check_keeping, check_residual_preset, check_threads, native_blocks, native_params
from bnncore.residual_plan import load_residual_tensors, native_network, residual_tensors
from bnncore.spec import ModelSpec
from bnncore.state import State, digest_tensors, has_statistics, to_float32, validate_state

__all__ = [
    "Engine",
    "isa_available",
    "isa_selected",
    "permutation",
    "read_rows",
]

_COUNTERS = ("seed", "steps_done", "statistics_steps", "saturated", "beta1_power", "beta2_power")
_FLOAT_ENGINES: dict[str, type[_native.StandardEngine | _native.PaperEngine]] = {
    "standard": _native.StandardEngine,
    "paper": _native.PaperEngine,
}
_RESIDUAL_ENGINES: dict[str, type[_native.ResidualEngine | _native.StandardResidualEngine]] = {
    "bitfleet": _native.ResidualEngine,
    "standard": _native.StandardResidualEngine,
}
_NUM_PHASES = 5  # what holds something in all of them lasts between steps

_PRODUCT_PHASES = ("forward", "recompute", "grad_w", "grad_x")
"""As the native engine orders them."""


class Engine(Evaluator):
    """Trains and evaluates one network.

    Args:
      spec: the network.
      batch_size: samples a step; a batch is always full.
      preset: numeric choices and optimizer; the default preset when None.
      seed: drives initial weights and rounding.
      threads: threads of a step, the calling one included.
      keep_products: whether dense layers keep their integer products from forward to backward, which computes them
        again otherwise: faster steps of networks that are mostly dense, for 2 bytes (the first layer: 4) an output and
        sample. The results are the same. Preset bitfleet alone.

    Raises:
      BudgetError, ConfigurationError, SpecError: a size is out of range, there are no products to keep, or BITFLEET_ISA
        names an instruction set that this machine cannot run.

    Memory: ``plan.peak_bytes``, none of which is touched before ``initialise``, ``load_state`` or the first use of
    ``input``.

    Attributes:
      input: uint8 [batch_size, input_features], a view of the arena: write the batch here. Read as x = 2u - 255.
      labels: int32 [batch_size], likewise; each in [0, classes).
    """

    _kind = "engine"

    def __init__(
        self,
        spec: ModelSpec,
        *,
        batch_size: int,
        preset: Preset | None = None,
        seed: int = 0,
        threads: int = 1,
        keep_products: bool = False,
    ) -> None:
        self.preset = preset or resolve_preset()
        self.seed = seed
        isa_selected()  # a wrong BITFLEET_ISA is told before anything is laid out
        check_keeping(spec, self.preset, keep_products)
        native = _make_native(spec, self.preset, batch_size, threads, keep_products)
        super().__init__(spec, native, batch_size)
        self._ready = False

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

    def observe(self, number: int) -> None:
        """Take the running statistics anew, a batch at a time; weights and optimizer stay as they are.

        Weights move on while running statistics are averaged, so these lag behind: the more weights flip in a step, the
        more. Observing some batches before a test, or after a model was merged, replaces them by means over those
        batches. ``training.observe`` does it for a data set.

        Args:
          number: batches observed since the first of them, which is 0 and makes the engine forget the statistics.
        """
        self._ensure_ready()
        self._native.observe(number)

    def phase_seconds(self) -> dict[str, float]:
        """Where the first thread's time went since the engine was made or ``reset_phases``, in seconds.

        Returns:
          forward, recompute (of the products), grad_w, grad_x (both with what uses the product on the spot: the update,
          the rounding) and rest (norms, signs, packing, softmax), which add up to the steps; nothing under the presets
          standard and paper.
        """
        if self.preset.name != "bitfleet":
            return {}
        layers = self.layer_seconds()
        phases = {name: sum(layer[name] for layer in layers) for name in _PRODUCT_PHASES}
        return phases | {"rest": self._native.step_seconds() - sum(phases.values())}

    def layer_seconds(self) -> list[dict[str, float]]:
        """Split ``phase_seconds`` by layers with weights, in their order; without rest, which is not told apart."""
        if self.preset.name != "bitfleet":
            return []
        return [dict(zip(_PRODUCT_PHASES, seconds, strict=True)) for seconds in self._native.phase_seconds()]

    def reset_phases(self) -> None:
        """Count the phases' time from here on."""
        if self.preset.name == "bitfleet":
            self._native.reset_phases()

    def step_traced(self, step_scale: float = 1.0) -> dict[str, Any]:
        """Like ``step``, and give every intermediate (see native/include/bnncore/trace.h); for tests."""
        self._ensure_ready()
        _ = self.spec.blocks  # raises for a residual network, which has no trace
        return self._native.step_traced(step_scale)

    def state(self, *, copy: bool = True) -> State:
        """Give the model: weights (int8, float32 under adam), beta and running statistics, in spec order.

        Args:
          copy: False gives views of the arena, which the next step changes, and takes no memory (but under bop, whose
            weights are unpacked, and the preset paper, whose float16 weights become float32).
        """
        state = {
            name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in self._tensors()
        }
        return {name: array.copy() for name, array in state.items()} if copy else state

    def weights_digest(self) -> str:
        """``bnncore.state.weights_digest`` of the state, which is not copied for it."""
        return digest_tensors(self.spec, self._tensors())

    def _tensors(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """The state tensor by tensor: views where the arena has them as they are; float16 weights as such."""
        self._ensure_ready()
        if self.spec.residual is not None:
            yield from residual_tensors(self.spec, self._native, self.plan.entries)
            return
        for i, block in enumerate(self.spec.blocks):
            weights = self._native.weights(i)
            if weights.dtype == np.uint16:  # the bits of float16
                weights = weights.view(np.float16)
            yield f"{block.linear}.weight", weights.reshape(block.weight_shape)
            yield from zip(
                (f"{block.norm}.beta", f"{block.norm}.mean", f"{block.norm}.mean_abs_dev"),
                self._native.norm(i),
                strict=True,
            )

    def load_state(self, state: State) -> None:
        """Replace the model; optimizer history is forgotten. Without statistics, those of the next steps are taken.

        Raises:
          ShapeError, PayloadError: the state is not a valid one of this network.
        """
        statistics = has_statistics(self.spec, state)
        validate_state(self.spec, state, statistics=statistics)
        self._native.reset(self.seed)
        if self.spec.residual is not None:
            load_residual_tensors(self.spec, self._native, self.plan.entries, state)
        else:
            self._load_blocks(state, statistics=statistics)
        if statistics:
            self._native.keep_statistics()
        self._ready = True

    def _load_blocks(self, state: State, *, statistics: bool) -> None:
        for i, block in enumerate(self.spec.blocks):
            weights = np.ascontiguousarray(state[f"{block.linear}.weight"])
            if self.preset.name != "bitfleet":
                weights = to_float32(weights)
            self._native.write_weights(i, weights.reshape(block.out_channels, block.fan_in))
            beta, mean, mean_abs_dev = self._native.norm(i)
            beta[:] = state[f"{block.norm}.beta"]
            if statistics:
                mean[:] = state[f"{block.norm}.mean"]
                mean_abs_dev[:] = state[f"{block.norm}.mean_abs_dev"]

    def training_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, int | float]]:
        """Give all that an engine needs to go on where this one stops, bit for bit.

        Returns:
          Views of the arena by name (weights, their moments, batch norms, scales), and counters.
        """
        self._ensure_ready()
        counters = dict(zip(_COUNTERS, self._native.counters(), strict=True))
        return self._persistent(), counters

    def load_training_state(self, tensors: Mapping[str, NDArray[Any]], counters: Mapping[str, int | float]) -> None:
        """Go on from what ``training_state`` gave.

        Args:
          tensors: arrays of the same names and sizes in bytes.
          counters: as they came.

        Raises:
          ShapeError: a tensor or a counter is missing or too many, or has another size. Nothing is changed.
        """
        targets = self._persistent()
        if set(tensors) != set(targets) or set(counters) != set(_COUNTERS):
            raise ShapeError("the saved training state is one of another network or optimizer")
        for name, target in targets.items():
            if tensors[name].nbytes != target.nbytes:
                raise ShapeError(f"{name} must have {target.nbytes} bytes, got {tensors[name].nbytes}")
        for name, target in targets.items():
            target.view(np.uint8).reshape(-1)[:] = np.ascontiguousarray(tensors[name]).view(np.uint8).reshape(-1)
        self._native.restore(
            seed=int(counters["seed"]),
            steps_done=int(counters["steps_done"]),
            statistics_steps=int(counters["statistics_steps"]),
            saturated=int(counters["saturated"]),
            beta1_power=float(counters["beta1_power"]),
            beta2_power=float(counters["beta2_power"]),
        )
        self.seed = int(counters["seed"])
        self._ready = True

    def _persistent(self) -> dict[str, NDArray[Any]]:
        arena = self.arena
        return {
            e.name: arena[e.offset : e.offset + e.num_bytes].view(e.dtype).reshape(e.shape)
            for e in self.plan.entries
            if e.role in ("weights", "momenta", "norm") and len(e.phases) == _NUM_PHASES
        }

    def _ensure_ready(self) -> None:
        if not self._ready:
            self.initialise()


def _make_native(spec: ModelSpec, preset: Preset, batch_size: int, threads: int, keep_products: bool) -> _native.Engine:
    params = native_params(preset.optimizer)
    if spec.residual is not None:
        check_residual_preset(spec, preset)
        check_threads(batch_size, threads)
        network = native_network(spec, batch_size=batch_size)
        return _RESIDUAL_ENGINES[preset.name](network, params, batch_size, threads)
    blocks = native_blocks(spec, batch_size=batch_size, threads=threads)
    if preset.name == "bitfleet":
        return _native.Engine(blocks, params, batch_size, threads, keep_products)
    return _FLOAT_ENGINES[preset.name](blocks, params, batch_size, threads)


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

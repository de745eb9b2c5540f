"""What is timed: the native engine and PyTorch behind one face. Runs in a worker process (``bnncore.bench.worker``).

A side is made in three parts, so that a worker can tell memory apart: its libraries are loaded and have done one step
of a toy network, then the batches are made, then the network.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bnncore.optimizer import Preset, resolve_preset
from bnncore.spec import ModelSpec
from bnncore.zoo import build

if TYPE_CHECKING:
    from bnncore.engine import Engine
    from bnncore.nn import Variant
    from bnncore.nn.trainer import StandardTrainer

__all__ = ["EngineSide", "Side", "TorchSide", "make_side"]

Batch = tuple[NDArray[np.uint8], NDArray[np.int32]]


class Side(Protocol):
    """One side of a comparison; ``spec`` is the network."""

    spec: ModelSpec

    def take_batches(self, batches: list[Batch]) -> None:
        """Keep the batches in the form that a step reads; loading them is not part of a step."""

    def build(self) -> None:
        """Make the network and all that training it needs."""

    def load(self, number: int) -> None:
        """Put a batch where the next step reads it."""

    def step(self) -> float:
        """Train on the batch that was loaded; give its loss."""

    def describe(self) -> dict[str, Any]:
        """Say what was built, as JSON values."""

    def reset_phases(self) -> None:
        """Start the clocks of the phases anew."""

    def phase_seconds(self) -> dict[str, float]:
        """Seconds by phase since then; empty where the side does not tell."""

    def layer_seconds(self) -> list[dict[str, float]]:
        """The same layer by layer, for the phases that have products."""


class EngineSide:
    """The native engine under one preset."""

    def __init__(
        self, spec: ModelSpec, preset: Preset, batch_size: int, threads: int, *, keep_products: bool = False
    ) -> None:
        self.spec, self._preset, self._batch_size, self._threads = spec, preset, batch_size, threads
        self._keep_products = keep_products
        self._batches: list[Batch] = []
        self._engine: Engine | None = None
        self._make(_toy(spec), 2).step()

    def take_batches(self, batches: list[Batch]) -> None:
        self._batches = batches

    def build(self) -> None:
        self._engine = self._make(self.spec, self._batch_size)

    def load(self, number: int) -> None:
        samples, labels = self._batches[number]
        self._built.input[:] = samples
        self._built.labels[:] = labels

    def step(self) -> float:
        return self._built.step().loss

    def describe(self) -> dict[str, Any]:
        from bnncore.engine import isa_selected

        return {"isa": isa_selected(), "plan_peak_bytes": self._built.plan.peak_bytes}

    def reset_phases(self) -> None:
        reset = getattr(self._built, "reset_phases", None)
        if reset is not None:
            reset()

    def phase_seconds(self) -> dict[str, float]:
        seconds = getattr(self._built, "phase_seconds", None)
        return dict(seconds()) if seconds is not None else {}

    def layer_seconds(self) -> list[dict[str, float]]:
        seconds = getattr(self._built, "layer_seconds", None)
        return list(seconds()) if seconds is not None else []

    def _make(self, spec: ModelSpec, batch_size: int) -> Engine:
        from bnncore.engine import Engine

        engine = Engine(
            spec,
            batch_size=batch_size,
            preset=self._preset,
            threads=self._threads,
            keep_products=self._keep_products,
        )
        engine.initialise()
        return engine

    @property
    def _built(self) -> Engine:
        assert self._engine is not None
        return self._engine


class TorchSide:
    """PyTorch's step of the standard algorithm, in one variant."""

    def __init__(self, spec: ModelSpec, variant: Variant, threads: int) -> None:
        # Compiled in this process: a pool of compilers would take cores from the other side.
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        from bnncore.nn import VARIANTS
        from bnncore.nn.trainer import StandardTrainer, prepare, use_threads

        use_threads(threads)
        self._make = StandardTrainer
        self.spec, self._variant = spec, variant
        self._trainer: StandardTrainer | None = None
        self._batches: list[tuple[Any, Any]] = []
        self._next: tuple[Any, Any] | None = None
        toy = _toy(spec)
        plain = VARIANTS["channels_last" if variant.channels_last else "fused Adam" if variant.fused else "eager"]
        batch = np.zeros((2, toy.input_features), np.uint8), np.zeros(2, np.int32)
        StandardTrainer(toy, plain).step(*prepare(toy, plain, *batch))

    def take_batches(self, batches: list[Batch]) -> None:
        from bnncore.nn.trainer import prepare

        self._batches = [prepare(self.spec, self._variant, *batch) for batch in batches]

    def build(self) -> None:
        self._trainer = self._make(self.spec, self._variant)

    def load(self, number: int) -> None:
        self._next = self._batches[number]

    def step(self) -> float:
        assert self._trainer is not None
        assert self._next is not None
        return self._trainer.step(*self._next)

    def describe(self) -> dict[str, Any]:
        from bnncore.nn.trainer import torch_version

        return {"variant": self._variant.name, "version": torch_version()}

    def reset_phases(self) -> None:
        pass

    def phase_seconds(self) -> dict[str, float]:
        return {}

    def layer_seconds(self) -> list[dict[str, float]]:
        return []


def make_side(description: dict[str, Any]) -> Side:
    """Make the side that a worker was asked for: ``kind``, ``spec`` and what belongs to the kind."""
    spec = ModelSpec.from_json(description["spec"])
    if description["kind"] == "torch":
        from bnncore.nn import VARIANTS

        return TorchSide(spec, VARIANTS[description["variant"]], description["threads"])
    preset = resolve_preset(description["preset"], description["optimizer"])
    sizes = description["batch_size"], description["threads"]
    return EngineSide(spec, preset, *sizes, keep_products=description["keep_products"])


def _toy(spec: ModelSpec) -> ModelSpec:
    """A network of the same kinds of layers that takes next to no memory."""
    if spec.residual is not None:
        return build("resnete18", input_shape=(8, 8, 3), widths=(2,), convs_per_stage=1, classes=2)
    if any(block.is_conv for block in spec.blocks):
        return build("cnv", input_shape=(8, 8, 3), widths=(2,), convs_per_stage=1, dense_widths=(4,), classes=2)
    return build("mlp", input_shape=(2, 2), widths=(4,), classes=2)

"""MemoryPlan: every byte of training, laid out before the first step; and what sizes the engine takes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from bnncore import _native
from bnncore.blocks import Block
from bnncore.errors import BudgetError, ConfigurationError, SpecError
from bnncore.optimizer import OptimizerConfig, Preset, resolve_preset
from bnncore.residual_plan import max_residual_batch, native_network
from bnncore.spec import ModelSpec

__all__ = [
    "MAX_BATCH_SIZE",
    "MemoryPlan",
    "PlanEntry",
    "check_keeping",
    "check_residual_preset",
    "check_threads",
    "describe_plan",
    "max_batch_size",
    "native_blocks",
    "native_params",
    "plan_memory",
]

MAX_BATCH_SIZE = 1 << 15
"""Largest batch of any network."""
MAX_FIRST_FAN_IN = 1 << 16
"""Most inputs of a first layer's output: 255 * 2**16 * 127 still fits the int32 products of its gradients."""
MAX_FAN_IN = 1 << 24
"""Most inputs of any other: 2**24 * 127 still fits."""
MAX_POSITIONS = 1 << 22
"""Most positions of a batch of maps: three sums of as many 8-bit gradients still fit an int32."""


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
        lasts between steps. Where there is no training, layer i is in phase ``evaluate i % 4``.
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


def plan_memory(
    spec: ModelSpec,
    *,
    batch_size: int,
    preset: Preset | None = None,
    threads: int = 1,
    keep_products: bool = False,
) -> MemoryPlan:
    """Lay out the arena of an engine without allocating it. The arguments are those of ``Engine``.

    Raises:
      BudgetError: batch_size is out of range.
      ConfigurationError: products cannot be kept by this preset, or in this network.
      SpecError: a layer has more inputs than the engine takes.
    """
    preset = preset or resolve_preset()
    check_keeping(spec, preset, keep_products)
    if spec.residual is not None:
        check_residual_preset(spec, preset)
        check_threads(batch_size, threads)
        params = native_params(preset.optimizer)
        network = native_network(spec, batch_size=batch_size)
        lay_out = {"bitfleet": _native.plan_residual, "standard": _native.plan_standard_residual}[preset.name]
        return describe_plan(*lay_out(network, params, batch_size, threads))
    blocks = native_blocks(spec, batch_size=batch_size, threads=threads)
    params = native_params(preset.optimizer)
    if preset.name == "bitfleet":
        return describe_plan(*_native.plan(blocks, params, batch_size, threads, keep_products))
    plan = {"standard": _native.plan_standard, "paper": _native.plan_paper}[preset.name]
    return describe_plan(*plan(blocks, params, batch_size, threads))


def describe_plan(entries: list[tuple[Any, ...]], peak_bytes: int) -> MemoryPlan:
    """Turn what the native side says of a plan into a MemoryPlan."""
    return MemoryPlan(tuple(PlanEntry(*entry) for entry in entries), peak_bytes)


def native_params(optimizer: OptimizerConfig) -> _native.OptimizerParams:
    """Hand an optimizer's constants to the native side."""
    return _native.OptimizerParams(**dataclasses.asdict(optimizer))


def native_blocks(spec: ModelSpec, *, batch_size: int, threads: int) -> list[_native.BlockSpec]:
    """Hand a network to the native side, which trusts what it is told.

    Raises:
      BudgetError: batch_size is out of range for this network.
      ConfigurationError: threads is out of range.
      SpecError: a layer has more inputs than the engine takes.
    """
    check_threads(batch_size, threads)
    for block in spec.blocks:
        largest = MAX_FIRST_FAN_IN if block.is_first else MAX_FAN_IN
        if block.fan_in > largest:
            raise SpecError(
                f"an output of layer {block.linear!r} may read at most {largest} numbers, so that its sums fit the "
                f"engine's integers; it reads {block.fan_in}. Make its input or its kernel smaller"
            )
        most = _most_samples(block)
        if most == 0:
            raise SpecError(
                f"the integer sums over the {block.conv_height} x {block.conv_width} map of layer {block.linear!r} do "
                f"not fit for a fan-in of {block.fan_in}. Make its kernel or its input smaller"
            )
        if batch_size > most:
            raise BudgetError(
                f"batch_size must lie in [1, {most}] for model {spec.name!r}, so that the integer sums over the "
                f"{block.conv_height} x {block.conv_width} maps of layer {block.linear!r} fit; got {batch_size}"
            )
    return [_native_block(block) for block in spec.blocks]


def check_residual_preset(spec: ModelSpec, preset: Preset) -> None:
    """Check that the engine trains a residual network under a preset.

    Raises:
      SpecError: it does not.
    """
    if preset.name == "paper":
        raise SpecError(
            f"preset {preset.name!r} trains chains of binary blocks only, and model {spec.name!r} is a residual "
            "network. Leave --preset out, or give --preset standard"
        )


def check_keeping(spec: ModelSpec, preset: Preset, keep_products: bool) -> None:
    """Check that there are products to keep where they are to be kept.

    Raises:
      ConfigurationError: there are none.
    """
    if not keep_products:
        return
    if preset.name != "bitfleet":
        raise ConfigurationError(
            f"products are kept by choice under the preset bitfleet alone, not under {preset.name!r}. Leave "
            "--keep-products out"
        )
    if spec.residual is not None or all(block.is_conv for block in spec.blocks):
        raise ConfigurationError(
            f"products are kept of binary dense layers, and model {spec.name!r} has none. Leave --keep-products out"
        )


def check_threads(batch_size: int, threads: int) -> None:
    """Check what every engine asks of a batch and its threads.

    Raises:
      BudgetError, ConfigurationError: one of them is out of range.
    """
    if not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise BudgetError(f"batch_size must lie in [1, {MAX_BATCH_SIZE}], got {batch_size}")
    if not 1 <= threads <= 256:
        raise ConfigurationError(f"threads must lie in [1, 256], got {threads}")


def max_batch_size(spec: ModelSpec) -> int:
    """Give the largest batch that the engine takes of this network, whatever memory it needs."""
    if spec.residual is not None:
        return min(MAX_BATCH_SIZE, max_residual_batch(spec))
    return min(MAX_BATCH_SIZE, *(_most_samples(block) for block in spec.blocks))


def _most_samples(block: Block) -> int:
    """Samples for which every sum over a batch stays exact.

    The gradient of the batch norm multiplies sums over n normalised values: 127 * bound * n^2 must fit an int64.
    """
    bound = block.fan_in * (255 if block.is_first else 1)
    values = math.isqrt(((1 << 63) - 1) // (127 * bound))
    positions = block.conv_height * block.conv_width
    return min(values // (block.norm_height * block.norm_width), MAX_POSITIONS // positions)


def _native_block(block: Block) -> _native.BlockSpec:
    fields = dataclasses.asdict(block)
    for name in ("is_conv", "is_first", "is_last"):
        del fields[name]
    return _native.BlockSpec(**fields)

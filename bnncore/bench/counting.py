"""The work in a training step, counted from the network's description: products by phase and kind, and bytes moved.

A product is one multiplication with its addition, counted as the convolution's definition has it, products with padding
included: ``positions * fan_in * out_channels`` a sample. A block's phases:

===========  =====================================================================  =============================
phase        what it computes                                                       kind (first block)
===========  =====================================================================  =============================
forward      Y = sign(X) sign(W)                                                    binary (input)
recompute    Y again, instead of having kept it (preset bitfleet alone)             binary (input)
grad_w       dW = sign(X)^T dY                                                      gradient (input_gradient)
grad_x       dX = dY sign(W)^T, in all blocks but the first                         gradient
===========  =====================================================================  =============================

and ``rest`` has none: batch norm, signs, pools, rounding, the optimizer. In the presets standard and paper every
product is ``float``.

Residual networks are not counted: their steps are timed, and neither bounds nor energy are said of them.

Bytes are those that a step must move if nothing stayed in a cache from one phase to the next: each tensor once for
every phase that reads or writes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from bnncore.blocks import Block
from bnncore.optimizer import Preset
from bnncore.spec import ModelSpec

__all__ = ["PHASES", "Kind", "PhaseWork", "add_work", "count_elements", "count_layers", "count_step"]

PHASES = ("forward", "recompute", "grad_w", "grad_x", "rest")
"""In the order of a step; ``rest`` is spread over all of it."""

Kind = Literal["binary", "gradient", "input", "input_gradient", "float"]
"""What is multiplied: bit by bit, 8-bit gradient by bit, 8-bit input by bit, 8-bit gradient by 8-bit input, float32."""

_STATE_BITS = {"latent8": 8, "latent8m": 16, "bop": 9, "sgd": 64, "adam": 96}
"""Bits that an optimizer keeps for each weight, the weight included."""


@dataclass(frozen=True)
class PhaseWork:
    """Work of one phase of one step: ``macs`` products by kind, and ``num_bytes`` moved."""

    macs: dict[Kind, int] = field(default_factory=dict)
    num_bytes: int = 0

    @property
    def total_macs(self) -> int:
        """Products of all kinds."""
        return sum(self.macs.values())


@dataclass(frozen=True)
class _Widths:
    """Bits of what moves. ``products``: Y, where it is written to memory; ``kept``: what the norm's gradient reads."""

    sample: int
    activation: int
    products: int
    kept: int
    gradient: int
    weight: int
    weight_grad: int
    state: int


def _widths(preset: Preset) -> _Widths:
    state = _STATE_BITS[preset.optimizer.name]
    if preset.name == "bitfleet":
        return _Widths(8, 1, 0, 0, gradient=8, weight=1, weight_grad=0, state=state + 1)
    if preset.name == "paper":
        return _Widths(8, 1, 16, 2, gradient=16, weight=16, weight_grad=1, state=state // 2)
    return _Widths(32, 32, 32, 32, gradient=32, weight=32, weight_grad=32, state=state)


def count_step(
    spec: ModelSpec, batch_size: int, preset: Preset, *, keep_products: bool = False
) -> dict[str, PhaseWork]:
    """Count a step's work by phase, for all phases that the preset has.

    PyTorch's step of the standard algorithm is that of the preset ``standard``.
    """
    return add_work(count_layers(spec, batch_size, preset, keep_products=keep_products))


def count_layers(
    spec: ModelSpec, batch_size: int, preset: Preset, *, keep_products: bool = False
) -> list[dict[str, PhaseWork]]:
    """Count the same layer by layer, in the order of the spec's blocks; of a residual network, nothing."""
    if spec.residual is not None:
        return []
    widths = _widths(preset)
    names = [name for name in PHASES if name != "recompute" or preset.name == "bitfleet"]
    layers = []
    for block in spec.blocks:
        bits, products = _bits(block, batch_size, widths), batch_size * _products(block)
        layer = {}
        for name in names:
            macs: dict[Kind, int] = {}
            if name == "recompute" and keep_products and not block.is_conv:
                layer[name] = PhaseWork()
                continue
            if name != "rest" and not (name == "grad_x" and block.is_first):
                macs[_kind(name, block) if preset.name == "bitfleet" else "float"] = products
            layer[name] = PhaseWork(macs, bits[name] // 8)
        layers.append(layer)
    return layers


def add_work(layers: Iterable[Mapping[str, PhaseWork]]) -> dict[str, PhaseWork]:
    """Add the work of some layers up, phase by phase."""
    total: dict[str, PhaseWork] = {}
    for layer in layers:
        for name, work in layer.items():
            before = total.get(name, PhaseWork())
            macs = {**before.macs}
            for kind, count in work.macs.items():
                macs[kind] = macs.get(kind, 0) + count
            total[name] = PhaseWork(macs, before.num_bytes + work.num_bytes)
    return total


def count_elements(spec: ModelSpec) -> int:
    """Numbers in all maps of products, a sample: what batch norms, signs and rounding go over."""
    return sum(block.conv_height * block.conv_width * block.out_channels for block in spec.blocks)


def _products(block: Block) -> int:
    return block.conv_height * block.conv_width * block.fan_in * block.out_channels


def _kind(phase: str, block: Block) -> Kind:
    if phase in ("forward", "recompute"):
        return "input" if block.is_first else "binary"
    return "input_gradient" if block.is_first else "gradient"


def _bits(block: Block, batch_size: int, widths: _Widths) -> dict[str, int]:
    x = batch_size * block.in_features * (widths.sample if block.is_first else widths.activation)
    products = batch_size * block.conv_height * block.conv_width * block.out_channels
    norm = batch_size * block.norm_height * block.norm_width * block.out_channels
    out = batch_size * block.out_features
    weights = block.num_weights * widths.weight
    grad_y = products * widths.gradient
    return {
        "forward": x + weights + 2 * products * widths.products + out * widths.activation,
        "recompute": x + weights,
        "grad_w": x + grad_y + block.num_weights * widths.weight_grad,
        "grad_x": 0 if block.is_first else grad_y + weights + batch_size * block.in_features * widths.gradient,
        "rest": out * widths.gradient
        + norm * widths.kept
        + grad_y
        + block.num_weights * (widths.weight_grad + 2 * widths.state),
    }

"""How much memory training takes: the standard algorithm, the paper's, and this engine's plan, side by side.

The first two are formulas (Wang et al., "Enabling Binary Neural Network Training on the Edge", arXiv 2102.04270). With
element counts

  B   samples a batch
  X   inputs of all layers and the logits, a sample
  G   the widest input or output, a sample
  W   binary weights
  C   output channels of all layers
  P   elements in front of a pooling layer, a sample; what the standard algorithm keeps for it is as large
  lw  1 when the optimizer keeps latent weights, else 0
  n   numbers more that the optimizer keeps for each weight

*Algorithm 1*, float32 throughout:            ``4 [B X + 2 B G + (lw + 1 + n) W + 4 C + B P]`` bytes
*Algorithm 2*, as published (float16, bits):  ``(B X + W + B P) / 8 + 2 [2 B G + (lw + n) W + 4 C]`` bytes

In a residual network the authors count the inputs of binary convolutions as bits in both; X are those layers' outputs.
Inputs and outputs of real-valued layers are kept in float32 or float16, their weight gradients too; and the gradients
of inputs and of outputs have each their own widest.

The engine's own figure is no formula: it is the size of the one block of memory that it trains in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from bnncore.errors import BudgetError, SpecError
from bnncore.optimizer import FLOAT_OPTIMIZERS, OPTIMIZERS, Preset, resolve_preset
from bnncore.plan import MemoryPlan, max_batch_size, plan_memory
from bnncore.residual import ResidualNetwork
from bnncore.spec import ModelSpec

__all__ = [
    "LayerCounts",
    "MemoryUse",
    "compare_memory",
    "count_layers",
    "describe_ratio",
    "largest_batch_size",
    "paper_memory",
    "planned_memory",
    "published_totals",
    "standard_memory",
]

_STATE_PER_WEIGHT = {"adam": (1, 2), "sgd": (1, 1), "bop": (0, 1), "latent8": (1, 0), "latent8m": (1, 1)}
"""(lw, n) by optimizer."""


@dataclass(frozen=True)
class LayerCounts:
    """The element counts X, G, W, C and P of a network (see the module).

    ``pooled_late_inputs`` are the inputs of the convolutions whose signs are pooled: where the paper's own figure for
    cnv has its masks. The others are of residual networks: ``widest_input`` (where ``widest`` is of outputs alone),
    ``signs`` (bits in both algorithms), ``real_activations`` and ``real_weights``.
    """

    activations: int
    widest: int
    weights: int
    channels: int
    pooled: int = 0
    pooled_late_inputs: int = 0
    widest_input: int | None = None
    signs: int = 0
    real_activations: int = 0
    real_weights: int = 0

    @property
    def widest_of_inputs(self) -> int:
        """The widest gradient of a layer's input."""
        return self.widest if self.widest_input is None else self.widest_input


@dataclass(frozen=True)
class MemoryUse:
    """Bytes by variable; ``total_bytes`` is their sum."""

    variables: dict[str, int]

    @property
    def total_bytes(self) -> int:
        """Bytes of everything at once."""
        return sum(self.variables.values())

    def to_dict(self) -> dict[str, Any]:
        """The use as JSON values."""
        return {"total_bytes": self.total_bytes, "variables": self.variables}


def count_layers(spec: ModelSpec) -> LayerCounts:
    """Count the elements of a network's tensors.

    A pool's input counts as P, not as X or G: it is the output of the layer before it.
    """
    if spec.residual is not None:
        return _count_residual(spec.residual, spec.num_binary_weights)
    inputs = [block.in_features for block in spec.blocks]
    outputs = [block.conv_height * block.conv_width * block.out_channels for block in spec.blocks]
    pooled = sum(size for size, block in zip(outputs, spec.blocks, strict=True) if block.pool != "none")
    return LayerCounts(
        sum(inputs) + outputs[-1],
        max(*inputs, *outputs),
        spec.num_binary_weights,
        sum(block.out_channels for block in spec.blocks),
        pooled,
        sum(block.in_features for block in spec.blocks if block.pool == "after_sign"),
    )


def _count_residual(network: ResidualNetwork, num_binary_weights: int) -> LayerCounts:
    stem, dense = network.stem, network.head.dense
    convs = [unit.conv for unit in network.units]
    shortcuts = [unit.shortcut.conv for unit in network.units if unit.shortcut is not None]
    real = [stem.conv, *shortcuts]
    # The gradients of the network's input and of the pools' outputs are never needed.
    inputs = [conv.in_map for conv in convs]
    outputs = [conv.out_map for conv in (*convs, *real)]
    return LayerCounts(
        activations=sum(math.prod(conv.out_map) for conv in convs),
        widest=max(math.prod(shape) for shape in outputs),
        weights=num_binary_weights,
        channels=sum(norm.features for norm in network.norms),
        pooled=math.prod(stem.pool.in_map) if stem.pool is not None else 0,
        widest_input=max(math.prod(shape) for shape in inputs),
        signs=sum(math.prod(shape) for shape in inputs),
        real_activations=sum(math.prod(conv.in_map) + math.prod(conv.out_map) for conv in real)
        + dense.in_features
        + dense.out_features,
        real_weights=sum(math.prod(conv.weight_shape) for conv in real) + dense.in_features * dense.out_features,
    )


def standard_memory(counts: LayerCounts, batch_size: int, optimizer: str = "adam") -> MemoryUse:
    """Algorithm 1: every variable in float32."""
    latent, momenta = _STATE_PER_WEIGHT[optimizer]
    weights = counts.weights + counts.real_weights
    return MemoryUse(
        {
            "X": 4 * batch_size * (counts.activations + counts.real_activations) + _bits(batch_size * counts.signs),
            "dX_Y": 4 * batch_size * counts.widest_of_inputs,
            "dY": 4 * batch_size * counts.widest,
            "mu_psi": 4 * 2 * counts.channels,
            "W": 4 * latent * weights,
            "dW": 4 * weights,
            "beta_dbeta": 4 * 2 * counts.channels,
            "momenta": 4 * momenta * weights,
            "pool_masks": 4 * batch_size * counts.pooled,
        }
    )


def paper_memory(counts: LayerCounts, batch_size: int, optimizer: str = "adam") -> MemoryUse:
    """Algorithm 2 as published: bits for activations, weight gradients and pool masks, float16 for the rest."""
    latent, momenta = _STATE_PER_WEIGHT[optimizer]
    weights = counts.weights + counts.real_weights
    return MemoryUse(
        {
            "X": _bits(batch_size * (counts.activations + counts.signs)) + 2 * batch_size * counts.real_activations,
            "dX_Y": 2 * batch_size * counts.widest_of_inputs,
            "dY": 2 * batch_size * counts.widest,
            "mu_psi": 2 * 2 * counts.channels,
            "W": 2 * latent * weights,
            "dW": _bits(counts.weights) + 2 * counts.real_weights,
            "beta_dbeta": 2 * 2 * counts.channels,
            "momenta": 2 * momenta * weights,
            "pool_masks": _bits(batch_size * counts.pooled),
        }
    )


def published_totals(counts: LayerCounts, batch_size: int) -> tuple[int, int]:
    """Standard and paper, bytes with Adam, as the paper's repository counts them.

    For networks that pool signs (cnv) the standard algorithm's masks have the size of the convolution's *input* there,
    and the other column has none: 4.17 at a batch of 100; counted alike in both it is 3.92. Residual networks' other
    column has none either: 3.78 for resnete18 at a batch of 4096, 3.70 with them.
    """
    standard = replace(counts, pooled=counts.pooled_late_inputs or counts.pooled)
    paper = replace(counts, pooled=0) if counts.pooled_late_inputs or counts.real_weights else counts
    return standard_memory(standard, batch_size).total_bytes, paper_memory(paper, batch_size).total_bytes


def _bits(count: int) -> int:
    return -(-count // 8)


def planned_memory(plan: MemoryPlan) -> MemoryUse:
    """The engine's block of memory by role, at the moment of a step when most of it is in use.

    Tensors that never live together share bytes, so the sizes of all tensors add up to more than the block. What is
    not in use at that moment is counted as ``unused``; the sum is the size of the block.
    """
    roles = list(dict.fromkeys(entry.role for entry in plan.entries))
    phases = dict.fromkeys(phase for entry in plan.entries for phase in entry.phases)
    moments = [
        {role: sum(e.num_bytes for e in plan.entries if e.role == role and phase in e.phases) for role in roles}
        for phase in phases
    ]
    fullest = max(moments, key=lambda moment: sum(moment.values()))
    return MemoryUse({**fullest, "unused": plan.peak_bytes - sum(fullest.values())})


def compare_memory(
    spec: ModelSpec, *, batch_size: int, preset: Preset, threads: int = 1, keep_products: bool = False
) -> dict[str, Any]:
    """Put the three side by side, as JSON values.

    Returns:
      ``standard`` (Algorithm 1 with Adam, whatever the preset says: the paper's baseline),
      ``standard_same_optimizer`` (the same with the numbers that the preset's optimizer keeps), ``paper``
      (Algorithm 2 as published, with Adam), ``bitfleet`` (this engine), each with ``total_bytes`` and ``variables``;
      ``ratio`` = standard / bitfleet; and what the figures belong to. Of a residual network that this engine cannot
      train so, ``bitfleet`` and ``ratio`` are None and ``not_planned`` says why.

    Raises:
      BudgetError: batch_size is out of range.
      ConfigurationError: there are no products to keep.
    """
    counts = count_layers(spec)
    standard = standard_memory(counts, batch_size)
    paper = paper_memory(counts, batch_size)
    published = published_totals(counts, batch_size)
    result: dict[str, Any] = {
        "model": spec.name,
        "batch_size": batch_size,
        "threads": threads,
        "preset": preset.name,
        "optimizer": preset.optimizer.name,
        "preset_digest": preset.digest,
        "keep_products": keep_products,
        "standard": standard.to_dict(),
        "standard_same_optimizer": standard_memory(counts, batch_size, preset.optimizer.name).to_dict(),
        "paper": {
            **paper.to_dict(),
            "ratio": standard.total_bytes / paper.total_bytes,
            "ratio_as_published": published[0] / published[1],
            "totals_as_published": list(published),
        },
        "bitfleet": None,
        "ratio": None,
    }
    try:
        plan = plan_memory(spec, batch_size=batch_size, preset=preset, threads=threads, keep_products=keep_products)
    except (BudgetError, SpecError) as error:
        if spec.residual is None:
            raise
        return {**result, "not_planned": str(error)}
    planned = planned_memory(plan)
    return {**result, "bitfleet": planned.to_dict(), "ratio": standard.total_bytes / planned.total_bytes}


def describe_ratio(ratio: float) -> str:
    """Say what a ratio of standard to something else means: ``12.6 times less``, or ``0.3 % more``."""
    if ratio >= 1.1:
        return f"{ratio:.3g} times less"
    return f"{100 * abs(1 / ratio - 1):.1f} % {'less' if ratio > 1 else 'more'}"


def largest_batch_size(
    spec: ModelSpec, *, budget_bytes: int, preset: Preset, threads: int = 1, keep_products: bool = False
) -> int:
    """Find the largest batch whose plan fits in a memory budget.

    Raises:
      BudgetError: not even one sample fits; the message says what would.
    """
    if _peak(spec, 1, preset, threads, keep_products) > budget_bytes:
        raise BudgetError(_what_would_fit(spec, budget_bytes, preset, threads, keep_products))
    fits, too_large = 1, max_batch_size(spec) + 1
    while too_large - fits > 1:
        middle = (fits + too_large) // 2
        if _peak(spec, middle, preset, threads, keep_products) <= budget_bytes:
            fits = middle
        else:
            too_large = middle
    return fits


def _peak(spec: ModelSpec, batch_size: int, preset: Preset, threads: int, keep_products: bool) -> int:
    return plan_memory(
        spec, batch_size=batch_size, preset=preset, threads=threads, keep_products=keep_products
    ).peak_bytes


def _what_would_fit(spec: ModelSpec, budget_bytes: int, preset: Preset, threads: int, keep_products: bool) -> str:
    needed = _peak(spec, 1, preset, threads, keep_products)
    optimizers = OPTIMIZERS if preset.name == "bitfleet" else FLOAT_OPTIMIZERS
    given = (preset, threads, keep_products)
    others = {f"--optimizer {name}": (resolve_preset(preset.name, name), threads, keep_products) for name in optimizers}
    others["--threads 1"] = (preset, 1, keep_products)
    others["no --keep-products"] = (preset, threads, False)
    if preset.name != "bitfleet":
        others["--preset bitfleet"] = (resolve_preset(), threads, False)
    peaks = {option: _peak(spec, 1, *other) for option, other in others.items() if other != given}
    advice = [f"{option} needs {_kib(peak)} KiB" for option, peak in peaks.items() if peak <= budget_bytes]
    advice.append(f"give --budget {_kib(needed)}KiB or more, or take a narrower model")
    return (
        f"model {spec.name!r} with preset {preset.name!r}, optimizer {preset.optimizer.name!r} and {threads} thread(s) "
        f"needs {_kib(needed)} KiB for one sample a batch, the budget is {budget_bytes >> 10} KiB. What would fit: "
        + ", or ".join(advice)
    )


def _kib(count: int) -> int:
    return -(-count >> 10)

"""Presets and optimizers: every constant of training, with its unit and its source.

A *preset* names a set of numeric choices. ``standard`` is Algorithm 1 in float32, ``paper`` Algorithm 2 of arXiv
2102.04270 with its activation mask in bits and float16; ``bitfleet``, the default, keeps one bit an activation,
computes the pre-activations twice, sends gradients as 8-bit integers and keeps 8 bits of state a weight. Two figures
belong together only when their presets have the same digest.

==========  ===============================================================  ============
optimizer   state of a weight                                                bits a weight
==========  ===============================================================  ============
latent8     int8 latent weight, whose sign is the weight (the default)         8
latent8m    int8 latent weight and int8 momentum                              16
bop         the weight's bit and an int8 average of its gradient               9
sgd         float32 latent weight and float32 momentum                        64
adam        float32 latent weight and two float32 moments                     96
==========  ===============================================================  ============
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, replace
from functools import cached_property

from bnncore.errors import OptimizerError

__all__ = ["OPTIMIZERS", "PRESETS", "OptimizerConfig", "Preset", "resolve_preset"]


@dataclass(frozen=True)
class OptimizerConfig:
    """The constants of one optimizer. Those that an optimizer does not use keep their defaults.

    The 8-bit optimizers divide a layer's weight gradient by its mean magnitude, averaged over the first
    ``normaliser_steps`` steps and fixed from then on: a normaliser that follows every step never lets learning settle.
    """

    name: str
    step_size: float
    """latent8*: change of a latent weight in [-1, 1] for a normalised gradient of 1. sgd: the same for a momentum of 1,
    in gradients times the root of the layer's number of weights. adam: its step size."""
    momentum: float = 0.9
    """latent8m, sgd: decay of the momentum a step."""
    momentum_unit: float = 32.0
    """latent8m: integer momentum that stands for a mean normalised gradient of 1, so that 127 stands for about 4."""
    gamma: float = 1e-3
    """bop: adaptivity rate, the share of the newest gradient in the average; the schedule scales it."""
    threshold: float = 0.03
    """bop: average normalised gradient beyond which a weight flips."""
    range: float = 0.25
    """bop: average normalised gradient that the integer 127 stands for."""
    beta1: float = 0.9
    """Adam's first decay, for float32 latent weights and for beta in every optimizer."""
    beta2: float = 0.999
    """Adam's second decay."""
    epsilon: float = 1e-8
    """Adam's addend to the square root."""
    beta_step_size: float = 1e-3
    """Adam step size of the batch norms' beta."""
    init_limit: int = 60
    """latent8*: latent weights start uniform in [-init_limit, init_limit], in units of 1/127."""
    normaliser_steps: int = 500
    """8-bit optimizers: steps over which the gradient normaliser is averaged."""
    headroom: float = 1.25
    """8-bit gradients: the scale leaves room for a maximum this many times that of the steps before."""
    scale_decay: float = 0.98
    """8-bit gradients: decay of the remembered maximum a step."""

    def __post_init__(self) -> None:
        """Check every constant.

        Raises:
          OptimizerError: a constant is not finite or lies outside its range.
        """
        unit = {"momentum", "beta1", "beta2", "scale_decay"}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "name":
                continue
            if not math.isfinite(value) or value <= 0:
                raise OptimizerError(
                    f"{field.name} of optimizer {self.name!r} must be positive and finite, got {value}"
                )
            if field.name in unit and value >= 1:
                raise OptimizerError(f"{field.name} of optimizer {self.name!r} must lie in (0, 1), got {value}")
        if self.init_limit > 127:
            raise OptimizerError(f"init_limit of optimizer {self.name!r} must lie in [1, 127], got {self.init_limit}")


OPTIMIZERS: dict[str, OptimizerConfig] = {
    "latent8m": OptimizerConfig("latent8m", step_size=8e-3),
    "latent8": OptimizerConfig("latent8", step_size=16e-3),
    "bop": OptimizerConfig("bop", step_size=1.0),
    "adam": OptimizerConfig("adam", step_size=1e-3),
    "sgd": OptimizerConfig("sgd", step_size=2e-2),
}
"""Default constants by optimizer."""

PRESETS: dict[str, str] = {"bitfleet": "latent8", "standard": "adam", "paper": "adam"}
"""Default optimizer by preset; bitfleet's is the smallest state that holds the accuracy (docs/optimizers.md)."""

FLOAT_OPTIMIZERS = ("adam", "sgd")
"""Those with real-valued latent weights: all that the presets standard and paper can use."""


@dataclass(frozen=True)
class Preset:
    """A named set of numeric choices together with its optimizer."""

    name: str
    optimizer: OptimizerConfig

    @cached_property
    def digest(self) -> str:
        """SHA-256 (lower-case hex) of every constant: figures are comparable only at the same digest."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def with_optimizer(self, **changes: float) -> Preset:
        """Give the preset with some constants of its optimizer changed."""
        return replace(self, optimizer=replace(self.optimizer, **changes))  # type: ignore[arg-type]


def resolve_preset(preset: str = "bitfleet", optimizer: str | None = None) -> Preset:
    """Look a preset up, with its default optimizer or another.

    Raises:
      OptimizerError: there is no such preset or optimizer; the message lists those that are.
    """
    if preset not in PRESETS:
        raise OptimizerError(f"there is no preset {preset!r}; known: {', '.join(sorted(PRESETS))}")
    name = PRESETS[preset] if optimizer is None else optimizer
    if name not in OPTIMIZERS:
        raise OptimizerError(f"there is no optimizer {name!r}; known: {', '.join(sorted(OPTIMIZERS))}")
    if preset != "bitfleet" and name not in FLOAT_OPTIMIZERS:
        raise OptimizerError(
            f"preset {preset!r} trains with one of {', '.join(FLOAT_OPTIMIZERS)}, got {name!r}. "
            "Leave --optimizer out, or take the preset bitfleet"
        )
    return Preset(preset, OPTIMIZERS[name])

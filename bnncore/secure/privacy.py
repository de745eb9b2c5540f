r"""Differential privacy of a sum: what each device's numbers are bounded by, and how much noise hides them.

Two sums are neighbours when one device's numbers are all 0 in one of them (zero-out; the number of devices is public).
All that a device sends is one vector with parts p, each within an L2 norm ``D_p`` of whole numbers and hidden by a
discrete Gaussian of standard deviation ``sigma_p`` in the sum. The whole is one Gaussian mechanism of noise multiplier
z, as what counts is ``sum_p (D_p / sigma_p)^2 = 1 / z^2``: a part has the share f_p of that, and so
``sigma_p = z D_p / sqrt(f_p)``.

====================  ===================================================  =====  ==============================
part                  natural number                                       share  bound of its L2 norm
====================  ===================================================  =====  ==============================
``weights``, signs    sign of each difference: -1, 0, 1                    0.90   sqrt(d), by itself
``weights``, fixed    each difference in steps of 1/127                    0.90   ``clip``; it is scaled down
``within_clip``       1 where those were within ``clip`` as they were, -1  0.01   1, by itself
                      where they were scaled down; beside "fixed" alone
``reals``             each difference of a beta or bias                    0.03   0.02 sqrt(d); scaled down
``statistics``        over the typical size, sqrt(fan-in), 255 times that  0.07   2 sqrt(d); scaled down
                      in the first layer
====================  ===================================================  =====  ==============================

Shares of parts that are not there go to the others in proportion. Scales and measurements are left out. A natural
number is told in ``2^k`` whole ones, rounded towards zero so that no norm grows; k is the least with which the noise of
one device has a standard deviation of at least 2 (then a sum of discrete Gaussians is one but for 10^-15, ``noise``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bnncore.errors import ConfigurationError
from bnncore.secure.noise import closeness, tail_bound
from bnncore.secure.parts import REALS, STATISTICS, WEIGHTS, WITHIN_CLIP, Part, WeightForm
from bnncore.spec import TensorSpec

__all__ = ["Mechanism", "Privacy", "adapted_clip", "effective_multiplier", "private_parts", "tail_of", "typical_sizes"]

Mechanism = Literal["distributed", "central"]

_SHARES = {WEIGHTS: 0.90, REALS: 0.03, STATISTICS: 0.07, WITHIN_CLIP: 0.01}
_REAL_CLIP, _STATISTIC_CLIP = 0.02, 2.0
_LEAST_SIGMA = 2.0
"""Of one device's noise, in whole numbers."""
_FINEST = {WEIGHTS: 16, REALS: 2**12, STATISTICS: 2**8, WITHIN_CLIP: 1}
"""Whole numbers of a natural one at least: of signs, 1."""
_CLIP_RATE = 0.2
_LEAST_CLIP, _LARGEST_CLIP = 0.1, 1e6
_TAIL_FAILURE = 2.0**-40
"""Chance that any number of a sum wraps around."""


@dataclass(frozen=True)
class Privacy:
    """How a round's sum is made differentially private; agreed by the coordinator and every device.

    Attributes:
      mechanism: "distributed": each device adds its part of the noise; "central": the coordinator adds all of it.
      noise_multiplier: z, the noise's standard deviation over the most that one device adds; above 0.
      noisy_members: devices that share the noise out: the fewest whose sum is ever seen. Of more, there is more noise.
      clip: form "fixed": largest L2 norm of the weights' differences, in steps of 1/127. Signs need none.

    Raises:
      ConfigurationError: a number is out of range.
    """

    mechanism: Mechanism
    noise_multiplier: float
    noisy_members: int
    clip: float = 0.0

    def __post_init__(self) -> None:
        if self.mechanism not in ("distributed", "central"):
            raise ConfigurationError(f"mechanism must be 'distributed' or 'central', got {self.mechanism!r}")
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0 and self.noisy_members >= 1):
            raise ConfigurationError(f"noise_multiplier must be above 0 and noisy_members at least 1, got {self}")
        if not (math.isfinite(self.clip) and self.clip >= 0):
            raise ConfigurationError(f"clip must be finite and not negative, got {self.clip}")

    @property
    def devices_add(self) -> bool:
        """Whether each device adds its part of the noise."""
        return self.mechanism == "distributed"

    def device_sigma(self, part: Part) -> float:
        """Give the standard deviation of the noise that one device adds to a part."""
        return part.sigma / math.sqrt(self.noisy_members)

    def sum_sigma(self, part: Part, num_members: int) -> float:
        """Give the standard deviation of the noise in a sum of so many devices."""
        return self.device_sigma(part) * math.sqrt(num_members) if self.devices_add else part.sigma


def private_parts(
    weights: WeightForm, privacy: Privacy, clip: int, groups: Sequence[tuple[str, tuple[TensorSpec, ...]]]
) -> tuple[Part, ...]:
    """Give each group of tensors its part.

    Args:
      weights: how those are told.
      privacy: how much noise there is.
      clip: "fixed": by how many steps a single weight may change.
      groups: name of the part and its tensors; those named ``WEIGHTS``, ``REALS`` or ``STATISTICS``.

    Raises:
      ConfigurationError: a group has no bound, or "fixed" has no clip.
    """
    names = [name for name, _ in groups]
    if unknown := sorted(set(names) - set(_SHARES)):
        raise ConfigurationError(
            f"there is no bound for {', '.join(unknown)}: privacy is for networks without real-valued layers"
        )
    if weights == "fixed" and privacy.clip == 0 and WEIGHTS in names:
        raise ConfigurationError(
            "weights told as 'fixed' need a clip above 0: the largest L2 norm of their differences"
        )
    if weights == "fixed" and WEIGHTS in names:
        groups = [*groups, (WITHIN_CLIP, ())]
    whole = sum(_SHARES[name] for name, _ in groups)
    parts = []
    for name, tensors in groups:
        size = sum(math.prod(tensor.shape) for tensor in tensors) if tensors else 1
        is_sign = name == WEIGHTS and weights == "signs"
        bound, largest = _bounds(name, size, privacy, clip, is_sign=is_sign)
        spread = privacy.noise_multiplier / math.sqrt(_SHARES[name] / whole)  # sigma of the sum over the bound
        fineness = 1 if is_sign else _FINEST[name]
        while bound * fineness * spread < _LEAST_SIGMA * math.sqrt(privacy.noisy_members):
            fineness *= 2
        high = max(math.floor(largest * fineness), 1)
        parts.append(
            Part(
                name,
                tensors,
                size,
                -high,
                high,
                fineness=fineness,
                bound=bound * fineness,
                sigma=bound * fineness * spread,
            )
        )
    return tuple(parts)


def _bounds(name: str, size: int, privacy: Privacy, clip: int, *, is_sign: bool) -> tuple[float, float]:
    """Give the bound of a part's L2 norm, and of one number in it, both natural."""
    if is_sign or name == WITHIN_CLIP:
        return math.sqrt(size), 1.0
    if name == WEIGHTS:
        return privacy.clip, min(float(clip), privacy.clip)
    bound = (_REAL_CLIP if name == REALS else _STATISTIC_CLIP) * math.sqrt(size)
    return bound, bound


def effective_multiplier(parts: Sequence[Part], privacy: Privacy) -> float:
    """Give the noise multiplier that the account has to go by: z, or less where a sum of noise is not quite Gaussian.

    Of each part ``D / sigma + tau sqrt(d)`` (Kairouz, Liu and Steinke, 2021, Theorem 1) in the place of ``D / sigma``.
    """
    total = 0.0
    for part in parts:
        told = part.bound / part.sigma
        if privacy.devices_add:
            told += closeness(privacy.device_sigma(part), privacy.noisy_members) * math.sqrt(part.size)
        total += told**2
    return 1 / math.sqrt(total)


def adapted_clip(clip: float, within: float, quantile: float) -> float:
    """Give the next round's clip, so that in time this part of the devices is within it as they are.

    ``clip exp(-0.2 (within - quantile))``, kept within 0.1 and 10^6.
    Source: Andrew et al., "Differentially Private Learning with Adaptive Clipping" (NeurIPS 2021, arXiv 1905.03871),
    Algorithm 1 with its geometric update; the noise of the count is a part of the one noise here.

    Args:
      clip: of this round.
      within: part of the devices that were within it, as the noisy sum says (``ValueSum.within_clip``).
      quantile: that should be.
    """
    return min(max(clip * math.exp(-_CLIP_RATE * (within - quantile)), _LEAST_CLIP), _LARGEST_CLIP)


def tail_of(part: Part, privacy: Privacy, num_members: int) -> int:
    """Give what the noise in a sum of so many devices does not pass, but with a chance of 2^-40."""
    if not privacy.devices_add:
        return 0
    return tail_bound(privacy.sum_sigma(part, num_members), part.size, _TAIL_FAILURE)


def typical_sizes(tensors: Sequence[TensorSpec]) -> dict[str, float]:
    """Give the typical size of each statistic of a network whose normalised layers are all binary.

    A pre-activation adds up fan-in numbers of +-1, or of +-255 in the first layer.

    Args:
      tensors: all of the network's.
    """
    sizes: dict[str, float] = {}
    typical, largest = 1.0, 255.0
    for tensor in tensors:
        if tensor.role in ("weight", "real_weight"):
            typical, largest = largest * math.sqrt(math.prod(tensor.shape[1:])), 1.0
        elif tensor.is_statistic:
            sizes[tensor.name] = typical
    return sizes

"""A device's update as whole numbers that are added up under masks, in place of a payload (``bnncore.secure``)."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnncore.codec import PayloadKind, SignTensor, encode_signs
from bnncore.federated.validation import LocalScore
from bnncore.secure.metrics import Metrics
from bnncore.secure.parts import WeightForm
from bnncore.secure.privacy import Privacy
from bnncore.secure.rounding import Told
from bnncore.secure.scales import Scales, scales_from_bytes
from bnncore.secure.values import ValueForm
from bnncore.spec import ModelSpec
from bnncore.state import State, to_int8

__all__ = ["SummedUpdates", "metrics_of", "tell_whole"]


@dataclass(frozen=True)
class SummedUpdates:
    """How a round's updates are told as whole numbers; the fields are those of the wire's ``SecureAggregation``.

    Attributes:
      weights: "signs" or "fixed".
      clip: "fixed": by how many steps of 1/127 a weight may change.
      scales: "signs": magnitudes common to the cohort; empty while none were agreed.
      privacy: bounds and noise that make the sum differentially private; None: there are none.
    """

    weights: WeightForm
    clip: int = 15
    scales: bytes = b""
    privacy: Privacy | None = None

    def form(self, spec: ModelSpec, kind: PayloadKind, local: frozenset[str]) -> ValueForm:
        """Give the form of a round of this network; raises ConfigurationError where there is none."""
        return _form(spec, kind, local, self.weights, self.clip, self.privacy)

    def agreed_scales(self, spec: ModelSpec, local: frozenset[str]) -> Scales:
        """Read the scales; raises PayloadError where they are not this network's."""
        return scales_from_bytes(spec, self.scales, local)


@functools.lru_cache(maxsize=4)
def _form(
    spec: ModelSpec,
    kind: PayloadKind,
    local: frozenset[str],
    weights: WeightForm,
    clip: int,
    privacy: Privacy | None,
) -> ValueForm:
    """Keep the forms of late, whose parts take as long to work out as a small network's update."""
    return ValueForm(spec, kind, local, weights, clip, privacy)


def metrics_of(loss: float, accuracy: float, score: LocalScore | None) -> Metrics:
    """Put what a device measured in one place."""
    score = score or LocalScore(0, 0, 0.0)
    return Metrics(loss, accuracy, score.examples, score.correct, score.loss)


def tell_whole(
    form: ValueForm, trained: State, base: State, feedback: State | None, scales: Scales
) -> tuple[Told, State]:
    """Say what local training changed, in the way of a form, with error feedback.

    ``x = latent - base + owed``; told are its signs, or x itself within +-clip. What is owed next time is x less what
    was told, where a sign tells the scale common to the cohort if there is one, else the device's own. Under privacy
    nothing is owed: what a bound cuts off would come back in every round.

    Args:
      form: of kind "update".
      trained: weights (int8, or float32 that is rounded to int8), beta and statistics.
      base: the model that training started from.
      feedback: int8 by name of shared weight tensor, from this job's last accepted update; None or empty: nothing.
      scales: common to the cohort; empty: none yet.

    Returns:
      What ``ValueForm.encode`` takes, and the feedback for the next update.
    """
    told: dict[str, SignTensor | NDArray[np.int16] | NDArray[np.float32]] = {}
    remaining: State = {}
    for tensor in form.spec.tensors:
        name = tensor.name
        if name in form.local:
            continue
        if tensor.role != "weight":
            told[name] = trained[name] if tensor.is_statistic else (trained[name] - base[name]).astype(np.float32)
            continue
        latent, start = to_int8(trained[name]), to_int8(base[name])
        owed = feedback[name] if feedback else None
        if form.privacy is not None:
            told[name] = _whole(latent, start, None)
        elif form.weights == "signs":
            signs, rest = encode_signs(latent, start, owed)
            told[name] = signs
            remaining[name] = rest if not scales else _remaining(_whole(latent, start, owed), signs, scales[name])
        else:
            x = _whole(latent, start, owed)
            told[name] = x
            remaining[name] = np.clip(x - np.clip(x, -form.clip, form.clip), -127, 127).astype(np.int8)
    return told, remaining


def _whole(latent: NDArray[np.int8], start: NDArray[np.int8], owed: NDArray[np.int8] | None) -> NDArray[np.int16]:
    x = np.subtract(latent, start, dtype=np.int16)
    return x if owed is None else np.add(x, owed, dtype=np.int16)


def _remaining(x: NDArray[np.int16], signs: SignTensor, scales: NDArray[np.uint16]) -> NDArray[np.int8]:
    """Give ``clip(round_half_away(x - sign * scale / 256), -127, 127)``, as ``encode_signs`` does of its own scale."""
    fine = x.astype(np.int32) * 256 - SignTensor(signs.shape, scales, signs.bits).dense()
    steps = np.sign(fine) * ((np.abs(fine) + 128) >> 8)
    remaining: NDArray[np.int8] = np.clip(steps, -127, 127).astype(np.int8)
    return remaining

"""What the coordinator sees: real local updates of small devices, alone, summed, or under noise.

The attacker is the coordinator. It knows the network, the model that training started from, the job, how many images
each device trained on, and 20,000 images of the same kind from elsewhere (*public* ones). What a device sends is made
by ``train_locally``, encoded and decoded by the job's codec. A sum adds up what the devices of a cohort told: votes as
they are, without the scales of a row, or differences in clipped latent steps. Masks are left out: the sum under masks
is the same, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnncore.codec import SignTensor, get_codec, payload_digest
from bnncore.codec.signs import FINE_UNITS
from bnncore.data import Dataset
from bnncore.engine import Engine
from bnncore.federated.local import EngineShelf, LocalTask, LocalTraining, train_locally
from bnncore.federated.local_state import LocalState
from bnncore.federated.replica import model_codec
from bnncore.state import State, to_int8
from bnncore.training import train
from bnncore.zoo import mlp

__all__ = ["CLIP", "DELTA", "Form", "Images", "Model", "View", "add_noise", "add_up", "gaussian_multiplier"]

DELTA = 1e-5
"""Of differential privacy."""
CLIP = 15.0
"""Of a weight in a sum under masks, in latent steps: a job's default."""

PUBLIC, BASE = range(20_000, 40_000), range(40_000, 50_000)
"""Rows that the attacker has, and rows that a model was trained on before, where one is wanted that knows something."""

Floats = NDArray[np.float64]
_SHELF = EngineShelf()


@dataclass(frozen=True)
class Form:
    """How a device trains and what it sends.

    Attributes:
      up_codec: ``float32`` or ``sign``.
      preset, optimizer: as in a job. ``standard`` with ``sgd`` sends one step's exact gradient.
      batch_size: 0: all images of the device.
    """

    up_codec: str
    preset: str = "bitfleet"
    optimizer: str = ""
    batch_size: int = 0
    steps: int = 1

    @property
    def down_codec(self) -> str:
        """That of the model: float32 latents where the preset has them."""
        return "float32" if self.preset == "standard" else "int8"


class Images:
    """MNIST, cut into what devices hold (the rows before ``PUBLIC``) and what the attacker has from elsewhere."""

    def __init__(self, dataset: Dataset, public: range = PUBLIC) -> None:
        self.dataset = dataset
        rows = np.array(public)
        self.public = self.pixels(rows)
        self.public_labels = dataset.labels[rows]

    def pixels(self, rows: NDArray[Any]) -> Floats:
        """Read images: float64 [n, 784] in [0, 1]."""
        out = np.empty((len(rows), 784), np.uint8)
        self.dataset.read(rows.astype(np.uint32), out)
        return out / 255.0

    def class_means(self) -> Floats:
        """Mean public image of each class: [10, 784]."""
        return np.stack([self.public[self.public_labels == digit].mean(0) for digit in range(10)])


@dataclass
class View:
    """What was received.

    Attributes:
      weights: by tensor name, [outputs, inputs]: the change of the latent weights that was told, in steps of 1/127 or,
        of preset ``standard``, of 1; summed.
      statistics: by tensor name: batch norm's means and mean absolute deviations; summed.
      num_members: devices in it.
      num_images: that they trained on, all together.
      is_signs: the weights are signs, or sums of signs.
    """

    weights: dict[str, NDArray[Any]]
    statistics: dict[str, Floats]
    num_members: int = 1
    num_images: int = 0
    is_signs: bool = False


@dataclass
class Model:
    """The model that a round starts from.

    Attributes:
      state: all its tensors.
      payloads: it encoded, by codec.
    """

    state: State
    payloads: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def fresh(cls, seed: int) -> Model:
        """Make the model of a job's first round."""
        engine = Engine(mlp(), batch_size=1)
        engine.initialise(seed)
        return cls(engine.state())

    @classmethod
    def trained(cls, seed: int, images: Images, steps: int) -> Model:
        """Make one that has learnt from images of nobody's."""
        engine = Engine(mlp(), batch_size=100, seed=seed)
        with images.dataset.subset(np.array(BASE)) as known:
            train(engine, known, epochs=1, max_steps=steps, seed=seed)
        return cls(engine.state())

    def payload(self, codec: str) -> bytes:
        """Encode it once."""
        if codec not in self.payloads:
            self.payloads[codec] = bytes(model_codec(codec).encode(mlp(), self.state, kind="model"))
        return self.payloads[codec]

    def moved(self, views: Sequence[View]) -> Model:
        """Give the model after a round: by the mean of what was told."""
        state = dict(self.state)
        for name in views[0].weights:
            mean = sum(view.weights[name] for view in views) / len(views)
            state[name] = np.clip(np.rint(state[name] + mean), -127, 127).astype(np.int8)
        return Model(state)

    def update(
        self, form: Form, rows: NDArray[Any], images: Images, *, seed: int, device: str, held: LocalState | None = None
    ) -> tuple[View, LocalState | None]:
        """Have a device train on these images: what the coordinator receives, and what the device keeps."""
        spec = mlp()
        training = LocalTraining(
            form.preset, form.optimizer, form.batch_size or len(rows), form.steps, 1.0, seed, statistics_batches=20
        )
        payload = self.payload(form.down_codec)
        task = LocalTask(
            device,
            1,
            payload_digest(payload),
            0,
            spec.to_json(),
            form.down_codec,
            form.up_codec,
            images.dataset.classes,
            training,
        )
        with images.dataset.subset(rows) as own:
            sent = train_locally(task, payload, own, _SHELF, local_state=held)
        told = get_codec(form.up_codec).decode(spec, sent.payload, kind="update")
        start = model_codec(form.down_codec).decode(spec, payload, kind="model")
        weights: dict[str, NDArray[Any]] = {}
        statistics: dict[str, Floats] = {}
        for tensor in spec.tensors:
            value = told[tensor.name]
            if isinstance(value, SignTensor):
                weights[tensor.name] = value.dense().astype(np.float32) / FINE_UNITS
            elif tensor.role == "weight":
                weights[tensor.name] = _latent(value, form) - _latent(start[tensor.name], form)
            elif tensor.is_statistic:
                statistics[tensor.name] = value.astype(np.float64)
        return View(weights, statistics, 1, len(rows), form.up_codec == "sign"), sent.local_state


def add_up(views: Sequence[View]) -> View:
    """Give the sum alone, as secure aggregation leaves it: of the signs without their scales, or of clipped steps."""
    return View(
        {name: _sum([_told(view, name) for view in views]) for name in views[0].weights},
        {name: _sum([view.statistics[name] for view in views]) for name in views[0].statistics},
        len(views),
        sum(view.num_images for view in views),
        views[0].is_signs,
    )


def add_noise(views: Sequence[View], multiplier: float, rng: np.random.Generator) -> View:
    """Give the sum under the Gaussian mechanism at the level of a device.

    A device's contribution is one vector of two parts, its weights and its statistics (these as parts of the largest
    value that each can have). Either part is clipped to the median norm that it has in the cohort, which the attacker
    may know, so the vector's norm is at most sqrt(2) of these units: times the multiplier, that is the noise of each
    element.
    """
    sizes = {name: _largest(name, views[0]) for name in views[0].statistics}
    parts = [
        ({n: _told(v, n) for n in v.weights}, {n: array / sizes[n] for n, array in v.statistics.items()}) for v in views
    ]
    bounds = [float(np.median([_norm(pair[which]) for pair in parts])) for which in (0, 1)]
    totals: list[dict[str, NDArray[Any]]] = []
    for which, bound in enumerate(bounds):
        factors = [min(1.0, bound / _norm(pair[which])) for pair in parts]
        noise = math.sqrt(2) * multiplier * bound
        totals.append(
            {
                name: _sum([factor * pair[which][name] for factor, pair in zip(factors, parts, strict=True)])
                + rng.normal(0.0, noise, parts[0][which][name].shape)
                for name in parts[0][which]
            }
        )
    weights, statistics = totals
    return View(
        weights,
        {name: array * sizes[name] for name, array in statistics.items()},
        len(views),
        sum(view.num_images for view in views),
        views[0].is_signs,
    )


def gaussian_multiplier(epsilon: float, delta: float = DELTA) -> float:
    """Give the least noise, in units of the sensitivity, of one release that is (epsilon, delta)-private.

    Source: Balle and Wang, 2018 (arXiv 1805.06530), Theorem 8: the exact delta of a Gaussian, bisected.
    """
    low, high = 1e-3, 1e3
    for _ in range(100):
        middle = math.sqrt(low * high)
        half, shift = 1 / (2 * middle), epsilon * middle
        spent = _normal_cdf(half - shift) - math.exp(epsilon) * _normal_cdf(-half - shift)
        low, high = (middle, high) if spent > delta else (low, middle)
    return high


def _latent(weights: NDArray[Any], form: Form) -> NDArray[np.float32]:
    return (weights if form.preset == "standard" else to_int8(weights)).astype(np.float32)


def _told(view: View, name: str) -> NDArray[Any]:
    weights = view.weights[name]
    told: NDArray[Any] = np.sign(weights) if view.is_signs else np.clip(weights, -CLIP, CLIP)
    return told


def _sum(arrays: Sequence[Floats]) -> Floats:
    total: Floats = np.sum(arrays, axis=0)
    return total


def _norm(part: dict[str, NDArray[Any]]) -> float:
    return math.sqrt(sum(float((array.astype(np.float64) ** 2).sum()) for array in part.values())) or 1.0


def _largest(statistic: str, view: View) -> float:
    """Give the largest magnitude of a layer's sums: inputs of 255 in the first layer, of 1 in the others."""
    layer = statistic.split(".")[0].removeprefix("norm")
    inputs: int = view.weights[f"dense{layer}.weight"].shape[1]
    return inputs * (255.0 if layer == "1" else 1.0)


def _normal_cdf(value: float) -> float:
    return 0.5 * math.erfc(-value / math.sqrt(2))

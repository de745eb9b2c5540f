"""What is attacked: the rows of the tables, and the devices behind them.

The same devices hold the same images in every setting, so that the rows compare.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.privacy_audit.views import Form, Images, Model, View, add_noise, add_up, gaussian_multiplier

__all__ = ["INVERSION", "MEMBERSHIP", "OTHERS", "Setting", "received"]

OTHERS = 3
"""Devices that move the model beside the one that is attacked over several rounds."""

_GRADIENT = Form("float32", "standard", "sgd")
_BIT = Form("sign")
_STEPS = Form("float32")


@dataclass(frozen=True)
class Setting:
    """One row.

    Attributes:
      label: of the row.
      form: how each device trains and what it tells.
      members: devices in the sum; 1: the update alone.
      epsilon: of one release, at ``DELTA``; 0: without noise.
      rounds: that the same device takes part in, with error feedback, beside ``OTHERS``.
      images: of each device; 0: the benchmark chooses.
    """

    label: str
    form: Form
    members: int = 1
    epsilon: float = 0.0
    rounds: int = 1
    images: int = 0


def _steps(form: Form, steps: int) -> Form:
    return Form(form.up_codec, form.preset, form.optimizer, form.batch_size, steps)


INVERSION = (
    Setting("(a) float32, one step", _GRADIENT),
    Setting("(a) float32, five steps", _steps(_GRADIENT, 5)),
    Setting("(b) 1 bit, one step", _BIT),
    Setting("(b) 1 bit, five steps", _steps(_BIT, 5)),
    Setting("(b) 1 bit, ten rounds, error feedback", _BIT, rounds=10),
    Setting("(c) sum of votes, 10 devices", _BIT, 10),
    Setting("(c) sum of votes, 50 devices", _BIT, 50),
    Setting("(c) sum of differences, 10 devices", _STEPS, 10),
    Setting("(c) sum of differences, 50 devices", _STEPS, 50),
    Setting("(d) 1 bit and noise, epsilon 8, one device", _BIT, 1, 8.0),
    Setting("(d) 1 bit and noise, epsilon 1, one device", _BIT, 1, 1.0),
    Setting("(d) sum of votes and noise, epsilon 8, 50 devices", _BIT, 50, 8.0),
    Setting("(d) sum of votes and noise, epsilon 1, 50 devices", _BIT, 50, 1.0),
    Setting("float32, 600 images, 60 steps", Form("float32", "standard", "sgd", batch_size=100, steps=60), images=600),
    Setting("1 bit, 600 images, 60 steps", Form("sign", batch_size=100, steps=60), images=600),
)
_TEN = {form: _steps(form, 10) for form in (_BIT, _STEPS)}
MEMBERSHIP = (
    Setting("(a) differences, not clipped", _TEN[_STEPS]),
    Setting("(b) 1 bit", _TEN[_BIT]),
    Setting("(c) sum of votes, 10 devices", _TEN[_BIT], 10),
    Setting("(c) sum of votes, 50 devices", _TEN[_BIT], 50),
    Setting("(c) sum of differences, 10 devices", _TEN[_STEPS], 10),
    Setting("(c) sum of differences, 50 devices", _TEN[_STEPS], 50),
    Setting("(d) 1 bit and noise, epsilon 8, one device", _TEN[_BIT], 1, 8.0),
    Setting("(d) 1 bit and noise, epsilon 1, one device", _TEN[_BIT], 1, 1.0),
    Setting("(d) sum of votes and noise, epsilon 8, 50 devices", _TEN[_BIT], 50, 8.0),
    Setting("(d) sum of votes and noise, epsilon 1, 50 devices", _TEN[_BIT], 50, 1.0),
)


def received(
    setting: Setting, model: Model, images: Images, rows: NDArray[np.int64], *, seed: int, cohorts: int
) -> Iterator[View]:
    """Give what arrives from each cohort in turn.

    Args:
      setting: how.
      model: that the (first) round starts from.
      images: the data.
      rows: which of them each device has: [cohorts, devices, images]; of a setting's cohort, the first ``members``.
      seed: of the devices' training and of the noise.
      cohorts: how many.
    """
    rng = np.random.default_rng(seed)
    for cohort in range(cohorts):
        held = rows[cohort]
        if setting.rounds > 1:
            yield _rounds(setting, model, images, held, f"{cohort}", seed)
            continue
        views = [
            model.update(setting.form, held[number], images, seed=seed, device=f"{cohort}-{number}")[0]
            for number in range(setting.members)
        ]
        if setting.epsilon:
            yield add_noise(views, gaussian_multiplier(setting.epsilon), rng)
        else:
            yield views[0] if setting.members == 1 else add_up(views)


def _rounds(setting: Setting, model: Model, images: Images, held: NDArray[np.int64], cohort: str, seed: int) -> View:
    """Collect a device's updates of several rounds, in which others take part: its rows one below the other."""
    told: list[View] = []
    kept = dict.fromkeys(range(1 + OTHERS))
    for round_number in range(setting.rounds):
        views = []
        for number in kept:
            view, kept[number] = model.update(
                setting.form,
                held[number],
                images,
                seed=seed + round_number,
                device=f"{cohort}-{number}",
                held=kept[number],
            )
            views.append(view)
        told.append(views[0])
        model = model.moved(views)
    stacked = {name: np.vstack([view.weights[name] for view in told]) for name in told[0].weights}
    return View(stacked, told[0].statistics, 1, told[0].num_images, is_signs=True)

"""The privacy audit's attacks: they succeed where nothing protects, and what protects shows."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks.privacy_audit.inversion import Prior, invert, mean_image
from benchmarks.privacy_audit.membership import attack
from benchmarks.privacy_audit.scores import correlations, re_identified, roc, structural_similarity
from benchmarks.privacy_audit.views import Form, Images, Model, View, add_noise, add_up, gaussian_multiplier
from bnncore.data import write_idx
from bnncore.data.idx import open_idx

GRADIENT = Form("float32", "standard", "sgd")
BIT = Form("sign")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    """Give strokes: crossing lines on an empty ground, 600 for devices and 600 public ones."""
    folder = tmp_path_factory.mktemp("strokes")
    rng = np.random.default_rng(1)
    pixels = np.zeros((1200, 28, 28), np.uint8)
    for image in pixels:
        (row, column), thickness = rng.integers(4, 22, 2), rng.integers(2, 4)
        image[row : row + thickness, 3:25] = rng.integers(128, 256)
        image[3:25, column : column + thickness] = rng.integers(128, 256)
    write_idx(folder, pixels, rng.integers(0, 10, 1200), "train")
    with open_idx(folder, split="train") as dataset:
        yield Images(dataset, public=range(600, 1200))


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.fresh(1)


@pytest.fixture(scope="module")
def prior(images: Images) -> Prior:
    return Prior.of(images.public)


def likeness(view: View, rows: list[int], model: Model, prior: Prior, images: Images) -> float:
    """Give the mean correlation of images with the guess that is most like each."""
    return float(correlations(invert(view, model, prior), images.pixels(np.array(rows))).max(0).mean())


def views(model: Model, images: Images, form: Form, devices: int, count: int) -> list[View]:
    return [
        model.update(form, np.arange(n * count, (n + 1) * count), images, seed=1, device=f"d{n}")[0]
        for n in range(devices)
    ]


@pytest.mark.parametrize("form", [GRADIENT, BIT], ids=["float32", "1 bit"])
def test_a_device_of_one_image_is_read_off_batch_norms_mean(
    images: Images, model: Model, prior: Prior, form: Form
) -> None:
    (view,) = views(model, images, form, 1, 1)

    if form is GRADIENT:
        assert not any(change.any() for change in view.weights.values())
    assert likeness(view, [0], model, prior, images) > 0.95


@pytest.mark.parametrize("form", [GRADIENT, BIT], ids=["float32", "1 bit"])
def test_a_small_batch_is_rebuilt_from_an_update(images: Images, model: Model, prior: Prior, form: Form) -> None:
    sent = views(model, images, form, 4, 4)

    alike = [likeness(view, [4 * n + k for k in range(4)], model, prior, images) for n, view in enumerate(sent)]

    assert np.mean(alike) > 0.75


def test_a_sum_of_fifty_hides_a_devices_images(images: Images, model: Model, prior: Prior) -> None:
    sent = views(model, images, BIT, 50, 4)

    alone, in_sum = (likeness(view, [0, 1, 2, 3], model, prior, images) for view in (sent[0], add_up(sent)))

    assert in_sum < alone - 0.2


def test_noise_hides_a_devices_images(images: Images, model: Model, prior: Prior) -> None:
    (view,) = views(model, images, BIT, 1, 4)

    noisy = add_noise([view], gaussian_multiplier(8.0), np.random.default_rng(1))

    assert likeness(noisy, [0, 1, 2, 3], model, prior, images) < 0.5


def test_the_mean_image_answers_to_the_statistics(images: Images, model: Model, prior: Prior) -> None:
    (view,) = views(model, images, BIT, 1, 8)

    mean = mean_image(view, model, prior)

    # The mean of the first norm is the weights times the inputs 510 x - 255, summed over a row.
    weights = np.where(model.state["dense1.weight"] >= 0, 1.0, -1.0)
    assert weights @ (510.0 * mean - 255.0) == pytest.approx(view.statistics["norm1.mean"], abs=1.0)


def test_membership_shows_in_an_update(images: Images, model: Model) -> None:
    rows = np.arange(200).reshape(20, 10)
    form = Form("sign", steps=10)
    trained = Model(
        {**model.state, **model.update(BIT, np.arange(200, 300), images, seed=1, device="public")[0].statistics}
    )
    sent = [trained.update(form, held, images, seed=1, device=f"d{n}")[0] for n, held in enumerate(rows)]

    area, _ = attack(
        sent, trained, images.pixels(rows.ravel()), images.dataset.labels[rows.ravel()], np.repeat(np.arange(20), 10)
    )

    assert area > 0.7


@pytest.mark.parametrize(("epsilon", "multiplier"), [(1.0, 3.7304), (8.0, 0.6)])
def test_the_noise_is_the_least_that_epsilon_asks_for(epsilon: float, multiplier: float) -> None:
    found = gaussian_multiplier(epsilon, 1e-5)

    # The privacy loss of a Gaussian is normal: mean 1 / 2 s^2, deviation 1 / s. Its hockey-stick divergence, summed up.
    loss = np.linspace(epsilon, epsilon + 60 / found, 2_000_001)
    density = np.exp(-((loss - 0.5 / found**2) ** 2) * found**2 / 2) * found / math.sqrt(2 * math.pi)
    delta = float(np.trapezoid(density * (1 - np.exp(epsilon - loss)), loss))
    assert delta == pytest.approx(1e-5, rel=1e-3)
    assert found == pytest.approx(multiplier, rel=0.02)


def test_scores_of_what_is_known() -> None:
    rng = np.random.default_rng(1)
    image, other = rng.random((2, 784))

    assert structural_similarity(image, image) == pytest.approx(1.0)
    assert structural_similarity(image, other) < 0.3
    assert correlations(image[None], (1.0 - image)[None]).item() == pytest.approx(-1.0)
    assert re_identified(image[None], np.stack([image, other]), rng.random((9, 784))).tolist()[0]
    assert roc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == (1.0, 1.0)
    assert roc(np.array([0.0, 1.0]), np.array([0.0, 1.0])) == (0.5, 0.0)

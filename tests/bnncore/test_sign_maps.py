"""Convolutions on bits against plain sums, on every instruction set."""

import numpy as np
import pytest
from numpy.typing import NDArray

from bnncore.engine import isa_available
from bnncore.errors import ShapeError
from bnncore.sign_maps import SignWeights, multiply_sign_maps

SHAPES = [
    # rows, columns, channels in and out, kernel, stride, padding
    pytest.param(5, 7, 64, 8, (3, 3), 1, (1, 1), id="whole words"),
    pytest.param(6, 6, 3, 5, (3, 3), 1, (1, 1), id="pixels across words"),
    pytest.param(4, 9, 70, 9, (3, 3), 1, (0, 0), id="no padding"),
    pytest.param(8, 8, 13, 6, (3, 3), 2, (1, 1), id="stride 2"),
    pytest.param(7, 5, 66, 4, (1, 1), 2, (0, 0), id="1 x 1 at stride 2"),
    pytest.param(9, 4, 5, 3, (1, 5), 1, (0, 2), id="1 x 5"),
    pytest.param(10, 11, 17, 33, (5, 2), 3, (3, 1), id="padding wider than needed"),
    pytest.param(1, 1, 1, 1, (1, 1), 1, (0, 0), id="one number"),
    pytest.param(40, 40, 64, 64, (3, 3), 1, (1, 1), id="several strips"),
]


def plain(x: NDArray[np.int64], w: NDArray[np.int64], stride: int, padding: tuple[int, int]) -> NDArray[np.int64]:
    """Sum products of x [B, H, W, C], which are 0 in the padding, and w [N, rows, columns, C], one tap at a time."""
    (down, across), rows, columns = padding, w.shape[1], w.shape[2]
    x = np.pad(x, ((0, 0), (down, down), (across, across), (0, 0)))
    height, width = (x.shape[1] - rows) // stride + 1, (x.shape[2] - columns) // stride + 1
    y = np.zeros((len(x), height, width, len(w)), np.int64)
    for i in range(rows):
        for j in range(columns):
            read = x[:, i : i + height * stride : stride, j : j + width * stride : stride][:, :height, :width]
            y += read @ w[:, i, j].T
    return y


@pytest.fixture(params=isa_available())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("BITFLEET_ISA", request.param)
    return str(request.param)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("rows", "columns", "channels", "outputs", "kernel", "stride", "padding"), SHAPES)
def test_products_are_plain_sums(
    isa: str,
    rows: int,
    columns: int,
    channels: int,
    outputs: int,
    kernel: tuple[int, int],
    stride: int,
    padding: tuple[int, int],
    threads: int,
) -> None:
    rng = np.random.default_rng(rows * columns + channels)
    x = rng.choice([-1, 1], (3, rows, columns, channels))
    w = rng.choice([-1, 1], (outputs, *kernel, channels))
    bits = np.packbits(x.reshape(3, -1) < 0, axis=1, bitorder="little")
    weights = SignWeights.of(w.astype(np.int8))
    y = multiply_sign_maps(bits, (rows, columns), weights, stride=stride, padding=padding, threads=threads)
    assert y.dtype == np.int16
    np.testing.assert_array_equal(y, plain(x, w, stride, padding))


def test_no_samples_give_no_products() -> None:
    weights = SignWeights.of(np.ones((2, 1, 1, 8), np.int8))
    assert multiply_sign_maps(np.empty((0, 4), np.uint8), (2, 2), weights).shape == (0, 2, 2, 2)


@pytest.mark.parametrize(
    ("size", "padding", "stride", "said"),
    [((2, 3), (0, 0), 1, r"bits of 48 signs"), ((2, 2), (0, 0), 1, "does not fit"), ((2, 2), (1, 1), 0, "stride 0")],
)
def test_what_does_not_fit_is_refused(size: tuple[int, int], padding: tuple[int, int], stride: int, said: str) -> None:
    weights = SignWeights.of(np.ones((2, 3, 3, 8), np.int8))
    with pytest.raises(ShapeError, match=said):
        multiply_sign_maps(np.empty((1, 4), np.uint8), size, weights, stride=stride, padding=padding)


def test_a_fan_in_beyond_16_bits_is_refused() -> None:
    with pytest.raises(ShapeError, match="32766"):
        SignWeights.of(np.ones((1, 1, 1, 32767), np.int8))
    with pytest.raises(ShapeError, match="out channels"):
        SignWeights.of(np.ones((1, 8), np.int8))

"""Layers one by one: products, norms and signs against plain PyTorch, and what a module has to be good for."""

from __future__ import annotations

import inspect
import itertools
import math
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from bnncore.nn import BinaryConv2d, BinaryLinear, BinarySign, L1BatchNorm1d, L1BatchNorm2d, products  # noqa: E402
from bnncore.nn.bits import pack, pack_codes, unpack, unpack_codes, unpack_mask  # noqa: E402
from bnncore.nn.pooling import arg_max, max_pool, unpool  # noqa: E402
from bnncore.nn.products import Geometry, Signs, binarize  # noqa: E402
from bnncore.packing import pack_signs  # noqa: E402
from tests.bnncore.nn_cases import gradients_of, plain  # noqa: E402


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 65, 130])
def test_bits_are_those_of_the_engine(count: int) -> None:
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(3, count)).astype(np.float32))

    bits = pack(x < 0)

    words = pack_signs(x.numpy())
    assert bits.shape == (3, -(-count // 8))
    assert bits.numpy().tobytes() == np.ascontiguousarray(words.view(np.uint8)[:, : bits.shape[1]]).tobytes()
    assert torch.equal(unpack(bits, count, torch.float32), binarize(x, torch.float32))
    assert torch.equal(unpack_mask(bits, count), x < 0)


def test_codes_come_back() -> None:
    codes = torch.arange(6 * 11, dtype=torch.uint8).view(6, 11) % 32

    assert torch.equal(unpack_codes(pack_codes(codes, 5), 11), codes)


@pytest.mark.parametrize("fan_in", [1, 2, 3, 8, 17, 64])
@pytest.mark.parametrize("outputs", [1, 2, 16, 33])
@pytest.mark.parametrize("batch", [1, 2, 17])
def test_products_of_signs_are_exact(fan_in: int, outputs: int, batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 2, (batch, fan_in), generator=generator, dtype=torch.int8) * 2 - 1
    weight = torch.randn(outputs, fan_in, generator=generator)

    y = products.products(x, Signs(weight), None)

    assert torch.equal(y.double(), x.double() @ binarize(weight, torch.float64).t())


@pytest.mark.parametrize("has_int8", [True, False])
def test_convolutions_of_signs_are_exact(has_int8: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_multiplies_int8", lambda device: has_int8)
    generator = torch.Generator().manual_seed(0)
    sizes = itertools.product([(5, 7), (1, 9)], [(3, 3), (1, 2)], [(1, 1), (2, 3)], [(0, 0), (1, 2)], [1, 5], [1, 4])
    for size, kernel, stride, padding, channels, outputs in sizes:
        geometry = Geometry(stride, padding)
        if min(geometry.out_size(size, kernel)) < 1:
            continue
        x = torch.randint(0, 2, (2, *size, channels), generator=generator, dtype=torch.int8) * 2 - 1
        weight = torch.randn(outputs, channels, *kernel, generator=generator)

        y = products.products(x, Signs(weight), geometry)

        wanted = nn.functional.conv2d(
            x.double().permute(0, 3, 1, 2), binarize(weight, torch.float64), None, stride, padding
        )
        assert torch.equal(y.double().permute(0, 3, 1, 2), wanted)


@pytest.mark.parametrize("window", [(2, 2), (3, 1), (2, 3), (16, 17)])
def test_pools_are_those_of_pytorch(window: tuple[int, int]) -> None:
    y = torch.randint(0, 5, (2, 17, 18, 3), generator=torch.Generator().manual_seed(0)).float()  # with many equal
    there = y.permute(0, 3, 1, 2).clone().requires_grad_()
    wanted = nn.functional.max_pool2d(there, window)
    grad = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    wanted.backward(grad)

    largest, choice = arg_max(y, window)

    assert torch.equal(largest.permute(0, 3, 1, 2), wanted)
    assert torch.equal(max_pool(y, window), largest)
    routed = unpool(grad.permute(0, 2, 3, 1).contiguous(), choice, window, (17, 18))
    assert torch.equal(routed.permute(0, 3, 1, 2), there.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("is_signs", [True, False])
@pytest.mark.parametrize(
    "layer",
    [
        BinaryLinear(9, 4),
        BinaryConv2d(6, 4, 3, padding=1),
        BinaryConv2d(6, 4, (3, 1), (2, 1), padding="same"),
        BinaryConv2d(6, 4, 3, dilation=2, groups=2),
    ],
    ids=str,
)
def test_products_and_gradients_are_those_of_plain_layers(layer: Any, is_signs: bool, dtype: Any) -> None:
    torch.manual_seed(0)
    layer = layer.to(dtype)
    x = torch.randn((5, 9) if isinstance(layer, BinaryLinear) else (5, 6, 8, 7), dtype=dtype)
    x = torch.sign(x) if is_signs else x

    y, grads = gradients_of(layer, [layer], x)

    weight = nn.Parameter(binarize(layer.weight, torch.float64))
    there: Any = nn.Module()
    there.weight = weight
    wanted, wanted_grads = gradients_of(lambda x: _plain_products(layer, x, weight), [there], x.double())
    # A number is a sum of at most 5 x 8 x 7 products of order one.
    bound = 300 * torch.finfo(dtype).eps * 8
    assert y.dtype == dtype
    assert (y - wanted).abs().max() <= (0 if is_signs else bound)
    for found, expected in zip(grads, wanted_grads, strict=True):
        assert (found - expected).abs().max() <= bound


def _plain_products(layer: Any, x: Any, weight: Any) -> Any:
    if isinstance(layer, BinaryLinear):
        return nn.functional.linear(x, weight)
    g = layer.geometry
    return nn.functional.conv2d(x, weight, None, g.stride, g.padding, g.dilation, g.groups)


def test_a_linear_layer_takes_any_number_of_dimensions() -> None:
    layer, x = BinaryLinear(6, 4), torch.randn(2, 3, 5, 6)

    assert torch.equal(layer(x), layer(x.view(30, 6)).view(2, 3, 5, 4))


@pytest.mark.parametrize(
    ("norm", "shape"), [(L1BatchNorm1d, (13, 4)), (L1BatchNorm1d, (5, 4, 6)), (L1BatchNorm2d, (5, 4, 3, 6))]
)
@pytest.mark.parametrize("eps", [0.0, 0.5])
def test_the_norm_has_the_exact_gradient(norm: Any, shape: tuple[int, ...], eps: float) -> None:
    torch.manual_seed(0)
    module = norm(4, eps).double()
    nn.init.normal_(module.bias)

    assert torch.autograd.gradcheck(module, torch.randn(shape, dtype=torch.float64, requires_grad=True))

    dims = [d for d in range(len(shape)) if d != 1]
    y = torch.randn(shape, dtype=torch.float64)
    centred = y - y.mean(dims, keepdim=True)
    wanted = centred / (centred.abs().mean(dims, keepdim=True) + eps) + module.bias.view(-1, *[1] * (len(shape) - 2))
    assert (module(y) - wanted).abs().max() < 1e-13


def test_a_norm_in_evaluation_is_linear_and_has_that_gradient() -> None:
    module = L1BatchNorm1d(3).double()
    for _ in range(3):
        module(torch.randn(7, 3, dtype=torch.float64) * 5 + 2)

    module.eval()

    y = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    wanted = (y - module.running_mean) / module.running_mean_abs_dev + module.bias
    assert torch.allclose(module(y), wanted, rtol=1e-13, atol=0)
    assert torch.autograd.gradcheck(module, y)


def test_running_statistics_hold_from_the_first_batch_on() -> None:
    module, batches = L1BatchNorm1d(2), [torch.randn(9, 2) * 3 + 1 for _ in range(14)]

    for y in batches:
        module(y)

    mean = torch.zeros(2, dtype=torch.float64)
    for n, y in enumerate(batches, start=1):
        share = max(0.1, 1 / n)
        mean = (1 - share) * mean + share * y.double().mean(0)
    assert torch.allclose(module.running_mean.double(), mean, rtol=1e-5)
    assert int(module.num_batches_tracked) == 14


def test_a_channel_without_deviation_gives_its_bias_and_no_gradient() -> None:
    module, y = L1BatchNorm1d(2), torch.tensor([[3.0, 1.0], [3.0, -1.0]], requires_grad=True)
    nn.init.constant_(module.bias, 0.25)

    x = module(y)
    x[0].sum().backward()

    assert x[:, 0].tolist() == [0.25, 0.25]
    assert y.grad[:, 0].tolist() == [0, 0]
    assert bool(torch.isfinite(y.grad).all())


def test_a_sign_passes_its_gradient_up_to_one() -> None:
    above = float(np.nextafter(np.float32(1), np.float32(2)))
    x = torch.tensor([-above, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, above], requires_grad=True)

    signs = BinarySign()(x)
    signs.backward(torch.full_like(x, 3.0))

    assert signs.tolist() == [-1, -1, -1, 1, 1, 1, 1, 1]
    assert x.grad.tolist() == [0, 3, 3, 3, 3, 3, 3, 0]


def test_latent_weights_are_clipped_when_a_step_begins_and_their_gradient_passes() -> None:
    layer = BinaryLinear(2, 1)
    layer.weight.data = torch.tensor([[1.5, -1.0]])

    layer(torch.tensor([[2.0, 3.0]])).backward()

    assert layer.weight.tolist() == [[1.0, -1.0]]
    assert layer.weight.grad.tolist() == [[2.0, 3.0]]
    layer.weight.data = torch.tensor([[1.5, -1.0]])
    layer.eval()(torch.tensor([[2.0, 3.0]]))
    assert layer.weight.tolist() == [[1.5, -1.0]]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (BinaryLinear, nn.Linear),
        (BinaryConv2d, nn.Conv2d),
        (L1BatchNorm1d, nn.BatchNorm1d),
        (L1BatchNorm2d, nn.BatchNorm2d),
    ],
)
def test_arguments_are_pytorchs_in_pytorchs_order(ours: Any, theirs: Any) -> None:
    there = [p for p in inspect.signature(theirs).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    here = list(inspect.signature(ours).parameters.values())

    assert [p.name for p in here[: len(there)]] == [p.name for p in there]


def test_what_a_layer_cannot_do_is_said() -> None:
    with pytest.raises(ValueError, match="has no bias: the batch norm after it"):
        BinaryLinear(3, 2, True)
    with pytest.raises(ValueError, match="pads with zeros only"):
        BinaryConv2d(3, 2, 3, padding_mode="reflect")
    with pytest.raises(ValueError, match="odd sides"):
        BinaryConv2d(3, 2, 2, padding="same")
    with pytest.raises(ValueError, match="multiples of groups"):
        BinaryConv2d(3, 2, 3, groups=2)
    with pytest.raises(ValueError, match=r"takes 4 dimensions with 3 features in the second, got \[2, 3\]"):
        L1BatchNorm2d(3)(torch.zeros(2, 3))


def test_weights_start_as_in_the_paper() -> None:
    weight = BinaryConv2d(32, 64, 3).weight

    assert weight.std().item() == pytest.approx(1 / math.sqrt(32 * 9), rel=0.05)  # of 18,432 numbers
    assert weight.abs().max() <= 1


def test_alone_a_layer_that_reads_signs_keeps_bits() -> None:
    modules = [BinarySign(), BinaryConv2d(8, 4, 3, padding=1)]
    x = torch.randn(2, 8, 16, 16, requires_grad=True)
    kept: list[Any] = []

    def keep(tensor: Any) -> Any:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = modules[1](modules[0](x))

    activations = sum(t.nbytes for t in kept if not isinstance(t, nn.Parameter))
    assert activations == 2 * x.numel() // 8  # the mask of the sign, and the signs
    y.sum().backward()
    doubled = nn.Sequential(*modules).double()
    assert torch.equal(y.double(), plain(doubled, x.detach().double()))

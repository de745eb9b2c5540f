"""Networks run block by block: their numbers, their gradients, and what they keep."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from bnncore.nn import (  # noqa: E402
    BinaryConv2d,
    BinaryLinear,
    BinarySign,
    L1BatchNorm1d,
    L1BatchNorm2d,
    Sequential,
    products,
    update_in_backward,
)
from bnncore.nn import block as block_module  # noqa: E402
from tests.bnncore.nn_cases import BLOCKS, gradients_of, kept_bytes, make_layers, plain  # noqa: E402


@pytest.mark.parametrize("chunk", [1, 2 << 20])
@pytest.mark.parametrize("has_int8", [True, False])
@pytest.mark.parametrize("name", BLOCKS)
def test_gradients_are_those_that_autograd_finds(
    name: str, has_int8: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_multiplies_int8", lambda device: has_int8)
    monkeypatch.setattr(block_module, "chunk_bytes", lambda device: chunk)
    modules, x = make_layers(name)
    doubled = nn.Sequential(*copy.deepcopy(modules)).double()

    out, grads = gradients_of(Sequential(*modules), modules, x)

    wanted, wanted_grads = gradients_of(lambda x: plain(doubled, x), list(doubled), x.double())
    # In float32 an element is a sum of at most some hundred rounded terms, which largest terms bound.
    for found, expected in zip([out, *grads], [wanted, *wanted_grads], strict=True):
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.mark.parametrize("name", BLOCKS)
def test_in_float64_nothing_but_rounding_is_left(name: str) -> None:
    modules, x = make_layers(name, seed=1)
    doubled = nn.Sequential(*copy.deepcopy(modules)).double()

    out, grads = gradients_of(Sequential(*doubled), list(doubled), x.double())

    wanted, wanted_grads = gradients_of(lambda x: plain(doubled, x), list(doubled), x.double())
    for found, expected in zip([out, *grads], [wanted, *wanted_grads], strict=True):
        assert found.dtype == torch.float64
        assert (found - expected).abs().max() <= 1e-13 * expected.abs().max()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", BLOCKS)
def test_the_same_modules_one_by_one_give_the_same(name: str, training: bool) -> None:
    modules, x = make_layers(name)
    for _ in range(2):
        nn.Sequential(*modules)(x)
    together, alone = Sequential(*modules).train(training), nn.Sequential(*copy.deepcopy(modules)).train(training)

    out, grads = gradients_of(together, modules, x)
    wanted, wanted_grads = gradients_of(alone, list(alone), x)

    for found, expected in zip([out, *grads], [wanted, *wanted_grads], strict=True):
        assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()
    for found, expected in zip(together.buffers(), alone.buffers(), strict=True):
        assert torch.equal(found, expected)


def small_network(sequential: Any) -> Any:
    return sequential(
        BinaryConv2d(3, 32, 3, padding=1),
        L1BatchNorm2d(32),
        BinarySign(),
        BinaryConv2d(32, 32, 3, padding=1),
        nn.MaxPool2d(2),
        L1BatchNorm2d(32),
        BinarySign(),
        nn.Flatten(),
        BinaryLinear(32 * 64, 64),
        L1BatchNorm1d(64),
        BinarySign(),
        BinaryLinear(64, 10),
        L1BatchNorm1d(10),
    )


def test_one_bit_a_number_is_kept() -> None:
    network, x = small_network(Sequential), torch.randn(20, 3, 16, 16)

    kept = kept_bytes(network, x)

    signs = 20 * (32 * 16 * 16 + 32 * 8 * 8 + 64) // 8
    channels = 2 * 8 * (32 + 32 + 64 + 10)  # mean and deviation, float64
    assert kept == x.nbytes + signs + channels
    doubled = small_network(nn.Sequential)
    assert kept_bytes(lambda x: plain(doubled, x), x) >= 25 * (kept - x.nbytes)


def test_a_residual_block_keeps_two_bits_a_number() -> None:
    block = Sequential(BinarySign(), BinaryConv2d(16, 16, 3, padding=1), L1BatchNorm2d(16))
    x = torch.randn(4, 16, 8, 8, requires_grad=True)

    kept = kept_bytes(lambda x: x + block(x), x)

    assert kept == 2 * x.numel() // 8 + 2 * 8 * 16


def test_floats_that_are_signs_are_kept_in_bits() -> None:
    layers = [BinaryLinear(64, 8), L1BatchNorm1d(8)]
    x = torch.randint(0, 2, (16, 64)).float() * 2 - 1

    assert kept_bytes(Sequential(*layers), x) == x.numel() // 8 + 2 * 8 * 8
    assert kept_bytes(Sequential(*layers), 2 * x) == x.nbytes + 2 * 8 * 8


def test_a_module_with_hooks_is_called() -> None:
    modules, x = make_layers("pool before the norm")
    network, seen = Sequential(*modules), []
    wanted = network(x)
    modules[5].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))

    out = network(x)

    assert seen == [(11, 8, 4, 4)]
    assert torch.allclose(out, wanted, rtol=1e-5, atol=1e-5)


def test_states_and_copies_are_whole() -> None:
    network, x = small_network(Sequential), torch.randn(8, 3, 16, 16)
    network(x)
    network.eval()
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)

    other = small_network(Sequential).eval()
    other.load_state_dict(torch.load(file, weights_only=True))

    assert torch.equal(other(x), network(x))
    assert torch.equal(copy.deepcopy(network)(x), network(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_mixed_precision_only_the_gradients_between_blocks_are_rounded(dtype: Any) -> None:
    modules, x = make_layers("pool before the norm")
    network = Sequential(*modules)
    wanted, wanted_grads = gradients_of(network, modules, x)

    def run(x: Any) -> Any:
        with torch.autocast("cpu", dtype=dtype):
            return network(x)

    out, grads = gradients_of(run, modules, x)

    assert torch.equal(out, wanted)
    # Three blocks, each rounding what it hands down to half a unit of the last place.
    for found, expected in zip(grads, wanted_grads, strict=True):
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() <= 8 * torch.finfo(dtype).eps * expected.abs().max()


# PyTorch looks at the gradient of what comes out of the network, and hides that only where warnings are no errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_it_gives_the_same() -> None:
    modules, x = make_layers("pool before the norm")
    network = Sequential(*modules)
    wanted, wanted_grads = gradients_of(lambda x: 2 * network(x / 2), modules, x)

    # The graph around it is captured as always; "eager" takes no C++ compiler.
    compiled = torch.compile(lambda x: 2 * network(x / 2), backend="eager")
    out, grads = gradients_of(compiled, modules, x)

    for found, expected in zip([out, *grads], [wanted, *wanted_grads], strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_updates_in_the_backward_pass_are_those_after_it(optimizer: Any) -> None:
    one, x = small_network(Sequential), torch.randn(8, 3, 16, 16)
    other = copy.deepcopy(one)
    after, during = optimizer(one.parameters(), lr=1e-2), optimizer(other.parameters(), lr=1e-2)
    undo = update_in_backward(during)

    for _ in range(3):
        after.zero_grad()
        nn.functional.cross_entropy(one(x), torch.arange(8)).backward()
        after.step()
        nn.functional.cross_entropy(other(x), torch.arange(8)).backward()

    assert all(p.grad is None for p in other.parameters())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    undo()
    other(x).sum().backward()
    assert all(p.grad is not None for p in other.parameters())


def test_training_without_gradients_keeps_nothing() -> None:
    network, x = small_network(Sequential), torch.randn(4, 3, 16, 16)

    with torch.no_grad():
        assert kept_bytes(network, x) == 0

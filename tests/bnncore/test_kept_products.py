"""Products that are kept from forward to backward: the same bits, more memory, nothing computed again."""

from __future__ import annotations

import numpy as np
import pytest

from bnncore.bench.boards import model_boards
from bnncore.bench.counting import count_step
from bnncore.engine import Engine, isa_available
from bnncore.errors import BudgetError, ConfigurationError
from bnncore.memory import compare_memory, largest_batch_size
from bnncore.optimizer import OPTIMIZERS, resolve_preset
from bnncore.plan import plan_memory
from bnncore.spec import ModelSpec
from bnncore.zoo import binarynet, cnv, mlp, resnete18
from tests.bnncore.cli_runs import fail, run_json
from tests.bnncore.engine_cases import assert_no_overlap

KEPT_MLP = 4 * 256 * 112 + 2 * (3 * 256 + 10) * 112
"""Bytes of mlp's products at batch 100, whose rows have room for 112: int32 in the first layer, int16 above."""


def trained(spec: ModelSpec, *, keep_products: bool, threads: int = 1, optimizer: str | None = None) -> Engine:
    preset = resolve_preset("bitfleet", optimizer)
    engine = Engine(spec, batch_size=21, preset=preset, seed=3, threads=threads, keep_products=keep_products)
    engine.initialise()
    rng = np.random.default_rng(4)
    for _ in range(5):
        engine.input[:] = rng.integers(0, 256, engine.input.shape, dtype=np.uint8)
        engine.labels[:] = rng.integers(0, spec.classes, 21)
        engine.step()
    return engine


@pytest.mark.parametrize("isa", isa_available())
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_what_is_learnt_is_the_same(isa: str, threads: int, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITFLEET_ISA", isa)
    spec = mlp((9, 9), (70, 33), 10)

    again = trained(spec, keep_products=False, optimizer=optimizer)
    kept = trained(spec, keep_products=True, threads=threads, optimizer=optimizer)

    assert kept.weights_digest() == again.weights_digest()
    for name, values in again.state().items():
        assert np.array_equal(kept.state()[name], values), name


def test_products_of_32_bits_above_the_first_layer_are_kept_too() -> None:
    spec = mlp((4,), (33_000, 3), 2)

    again, kept = (trained(spec, keep_products=keep) for keep in (False, True))

    assert kept.weights_digest() == again.weights_digest()
    assert {entry.dtype for entry in kept.plan.entries if entry.name.endswith(".products")} == {"int32", "int16"}


def test_dense_layers_behind_convolutions_keep_theirs_and_convolutions_compute_again() -> None:
    spec = cnv((12, 12, 2), (3, 4), dense_widths=(20,), convs_per_stage=1)

    again, kept = (trained(spec, keep_products=keep) for keep in (False, True))

    assert kept.weights_digest() == again.weights_digest()
    computed = [layer["recompute"] > 0 for layer in kept.layer_seconds()]
    assert computed == [block.is_conv for block in spec.blocks]
    assert True in computed
    assert False in computed


def test_the_plan_has_them_and_their_sums() -> None:
    again, kept = (plan_memory(mlp(), batch_size=100, keep_products=keep) for keep in (False, True))

    products = [entry for entry in kept.entries if entry.name.endswith(".products")]
    assert sum(entry.num_bytes for entry in products) == KEPT_MLP
    assert KEPT_MLP < kept.peak_bytes - again.peak_bytes < 1.1 * KEPT_MLP
    assert kept.peak_bytes < 0.92 * 2**20
    assert not any(entry.name.endswith(".products") for entry in again.entries)
    assert_no_overlap(kept)


def test_an_evaluation_between_steps_changes_nothing() -> None:
    spec = mlp((9, 9), (40,), 10)
    undisturbed, disturbed = (trained(spec, keep_products=True) for _ in range(2))

    disturbed.evaluate_batch(7)
    for engine in (undisturbed, disturbed):
        engine.step()

    assert disturbed.weights_digest() == undisturbed.weights_digest()


def test_work_is_counted_as_it_is_done() -> None:
    again, kept = (count_step(mlp(), 100, resolve_preset(), keep_products=keep) for keep in (False, True))

    assert kept["recompute"].macs == {}
    assert {name: kept[name] for name in kept if name != "recompute"} == {
        name: again[name] for name in again if name != "recompute"
    }
    some = count_step(binarynet(), 1, resolve_preset(), keep_products=True)
    assert 0 < some["recompute"].total_macs < some["forward"].total_macs
    boards = [model_boards(mlp(), 200, resolve_preset(), keep_products=keep)["boards"] for keep in (False, True)]
    assert all(boards[1][name]["seconds"] < boards[0][name]["seconds"] for name in boards[0])


def test_a_budget_says_that_computing_again_would_fit() -> None:
    preset = resolve_preset()
    least = plan_memory(mlp(), batch_size=1).peak_bytes

    with pytest.raises(BudgetError, match="What would fit: no --keep-products needs"):
        largest_batch_size(mlp(), budget_bytes=least, preset=preset, keep_products=True)

    fits = [
        largest_batch_size(mlp(), budget_bytes=1 << 20, preset=preset, keep_products=keep) for keep in (True, False)
    ]
    assert 100 <= fits[0] < fits[1]


def test_the_commands_keep_them(capsys: pytest.CaptureFixture[str]) -> None:
    told = run_json(capsys, "memory", "--keep-products")
    assert told["bitfleet"]["total_bytes"] == plan_memory(mlp(), batch_size=100, keep_products=True).peak_bytes
    assert told == compare_memory(mlp(), batch_size=100, preset=resolve_preset(), keep_products=True)

    small = ("--widths", "16", "--batch-size", "10", "--keep-products")
    timed = run_json(capsys, "bench", *small, "--steps", "2", "--rounds", "3", "--against", "standard")
    assert timed["keep_products"] is True
    assert timed["bitfleet"]["phases"]["recompute"] == {"ms": 0.0}
    assert timed["bitfleet"]["phases"]["forward"]["macs"] > 0

    options = ("--dataset", "digits", "--epochs", "1", "--widths", "16", "--batch-size", "10")
    runs = [run_json(capsys, "train", *options, *more) for more in ((), ("--keep-products",))]
    assert runs[0]["weights_digest"] == runs[1]["weights_digest"]
    assert runs[0]["plan_peak_bytes"] < runs[1]["plan_peak_bytes"]


@pytest.mark.parametrize("command", ["memory", "bench", "train"])
def test_where_there_are_none_to_keep_the_commands_say_so(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = ("--dataset", "digits") if command == "train" else ()

    assert "under the preset bitfleet alone" in fail(capsys, 3, command, *data, "--preset", "paper", "--keep-products")
    if command != "train":
        words = fail(capsys, 3, command, "--model", "resnete18", "--keep-products")
        assert "model 'resnete18' has none" in words


def test_a_residual_network_has_none() -> None:
    with pytest.raises(ConfigurationError, match="has none"):
        Engine(resnete18((8, 8, 3), widths=(8,), convs_per_stage=1), batch_size=2, keep_products=True)

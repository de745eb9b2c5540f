"""The published totals come out of the formulas, and the plan of the engine is reported as it is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bnncore.errors import BudgetError, SpecError
from bnncore.memory import (
    LayerCounts,
    compare_memory,
    count_layers,
    describe_ratio,
    largest_batch_size,
    paper_memory,
    planned_memory,
    published_totals,
    standard_memory,
)
from bnncore.optimizer import OPTIMIZERS, resolve_preset
from bnncore.plan import plan_memory
from bnncore.zoo import binarynet, bireal18, cnv, mlp, resnete18

MIB = 1 << 20
MLP = count_layers(mlp())
CNV = count_layers(cnv())
BINARYNET = count_layers(binarynet())


def test_sums_that_would_not_fit_are_refused() -> None:
    with pytest.raises(SpecError, match=r"65536 numbers, .* reads 65537"):
        plan_memory(mlp((65_537,), (8,), 3), batch_size=1)
    # Three sums of 2^22 gradients fit an int32: room for four maps of 1022 x 1022.
    deep = cnv((1024, 1024), (1,), 1, (1,), 2)
    assert plan_memory(deep, batch_size=4).peak_bytes > 0
    with pytest.raises(BudgetError, match=r"batch_size must lie in \[1, 4\].*1022 x 1022 maps of layer 'conv1'"):
        plan_memory(deep, batch_size=5)


def test_the_networks_have_the_papers_element_counts() -> None:
    assert LayerCounts(activations=1818, widest=784, weights=399_872, channels=1034) == MLP
    assert (CNV.activations, CNV.widest, CNV.weights) == (98_442, 57_600, 1_542_848)
    assert (CNV.channels, CNV.pooled) == (1930, 62_976)
    assert (BINARYNET.activations, BINARYNET.widest, BINARYNET.weights) == (291_850, 131_072, 14_022_016)
    assert (BINARYNET.channels, BINARYNET.pooled) == (3850, 229_376)


def test_the_papers_ratios_come_out_as_published_and_as_counted_alike() -> None:
    def consistent(counts: LayerCounts) -> float:
        return standard_memory(counts, 100).total_bytes / paper_memory(counts, 100).total_bytes

    def published(counts: LayerCounts) -> float:
        standard, paper = published_totals(counts, 100)
        return standard / paper

    assert [round(published(counts), 2) for counts in (MLP, CNV, BINARYNET)] == [2.78, 4.17, 3.71]
    assert [round(consistent(counts), 2) for counts in (MLP, CNV, BINARYNET)] == [2.78, 3.92, 3.71]


def test_the_papers_residual_network_comes_out_as_published_and_as_counted_alike() -> None:
    counts = count_layers(resnete18())
    gib = 1 << 30

    standard, paper = published_totals(counts, 4096)

    assert (counts.weights, counts.real_weights) == (10_985_472, 693_440)
    # The authors' sheet names the widest gradients at this batch.
    assert (4096 * counts.widest_of_inputs, 4096 * counts.widest) == (822_083_584, 3_288_334_336)
    assert (round(standard / gib, 2), round(paper / gib, 2)) == (70.10, 18.54)
    assert round(standard / paper, 2) == 3.78
    alike = standard_memory(counts, 4096).total_bytes / paper_memory(counts, 4096).total_bytes
    assert round(alike, 2) == 3.70
    assert counts == count_layers(bireal18())


@pytest.mark.parametrize(("optimizer", "standard_gib", "paper_gib"), [("sgd", 70.05, 18.52), ("bop", 70.01, 18.49)])
def test_a_residual_networks_totals_are_the_published_ones_with_other_optimizers(
    optimizer: str, standard_gib: float, paper_gib: float
) -> None:
    counts = count_layers(resnete18())

    standard = standard_memory(counts, 4096, optimizer).total_bytes
    paper = paper_memory(replace(counts, pooled=0), 4096, optimizer).total_bytes  # without masks, as published

    assert (standard >> 20) / 1024 == pytest.approx(standard_gib, abs=0.006)
    assert (paper >> 20) / 1024 == pytest.approx(paper_gib, abs=0.006)


@pytest.mark.parametrize(
    ("counts", "optimizer", "standard_mib", "paper_mib"),
    [
        (MLP, "adam", 7.41, 2.66),
        (CNV, "adam", 129.09, 32.92),
        (BINARYNET, "adam", 512.85, 138.15),
        (BINARYNET, "latent8m", 459.36, 111.40),  # one momentum, as SGD with momentum keeps
        (BINARYNET, "bop", 405.87, 84.66),
    ],
)
def test_totals_are_the_published_ones(
    counts: LayerCounts, optimizer: str, standard_mib: float, paper_mib: float
) -> None:
    assert standard_memory(counts, 100, optimizer).total_bytes / MIB == pytest.approx(standard_mib, abs=0.006)
    assert paper_memory(counts, 100, optimizer).total_bytes / MIB == pytest.approx(paper_mib, abs=0.006)


def test_variables_are_the_published_ones() -> None:
    mib = {name: round(size / MIB, 2) for name, size in standard_memory(BINARYNET, 100).variables.items()}
    paper_mib = {name: round(size / MIB, 2) for name, size in paper_memory(BINARYNET, 100).variables.items()}

    assert mib == {
        "X": 111.33,
        "dX_Y": 50.0,
        "dY": 50.0,
        "mu_psi": 0.03,
        "W": 53.49,
        "dW": 53.49,
        "beta_dbeta": 0.03,
        "momenta": 106.98,
        "pool_masks": 87.5,
    }
    assert paper_mib == {
        "X": 3.48,
        "dX_Y": 25.0,
        "dY": 25.0,
        "mu_psi": 0.01,
        "W": 26.74,
        "dW": 1.67,
        "beta_dbeta": 0.01,
        "momenta": 53.49,
        "pool_masks": 2.73,
    }


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("threads", [1, 2])
def test_roles_add_up_to_the_engines_block(optimizer: str, threads: int) -> None:
    preset = resolve_preset(optimizer=optimizer)
    plan = plan_memory(mlp(), batch_size=100, preset=preset, threads=threads)

    use = planned_memory(plan)

    assert use.total_bytes == plan.peak_bytes
    assert min(use.variables.values()) >= 0
    lasting = {"latent8": 1, "latent8m": 1, "bop": 0, "adam": 4, "sgd": 4}[optimizer] * 399_872
    assert use.variables["weights"] >= lasting


def test_the_default_preset_takes_an_eighth_of_the_standard_algorithm() -> None:
    compared = compare_memory(mlp(), batch_size=100, preset=resolve_preset())

    assert compared["bitfleet"]["total_bytes"] <= 0.92 * MIB
    assert compared["ratio"] == compared["standard"]["total_bytes"] / compared["bitfleet"]["total_bytes"] > 8
    assert compared["preset_digest"] == resolve_preset().digest


def test_the_standard_is_adams_whatever_the_optimizer() -> None:
    compared = compare_memory(mlp(), batch_size=100, preset=resolve_preset(optimizer="latent8"))

    assert compared["standard"]["total_bytes"] == standard_memory(MLP, 100, "adam").total_bytes
    assert compared["standard_same_optimizer"]["total_bytes"] == standard_memory(MLP, 100, "latent8").total_bytes
    assert compared["paper"]["total_bytes"] == paper_memory(MLP, 100, "adam").total_bytes


@pytest.mark.parametrize("budget_bytes", [MIB, 3 * MIB, 20 * MIB])
def test_the_largest_batch_fits_and_one_more_does_not(budget_bytes: int) -> None:
    preset = resolve_preset()

    batch_size = largest_batch_size(mlp(), budget_bytes=budget_bytes, preset=preset)

    assert plan_memory(mlp(), batch_size=batch_size, preset=preset).peak_bytes <= budget_bytes
    assert plan_memory(mlp(), batch_size=batch_size + 1, preset=preset).peak_bytes > budget_bytes


def test_a_budget_that_is_too_small_is_refused_with_what_would_fit() -> None:
    preset = resolve_preset("bitfleet", "latent8m")
    needed = plan_memory(mlp(), batch_size=1, preset=preset).peak_bytes

    kib = -(-needed // 1024)
    message = rf"needs {kib} KiB .* is {kib - 1} KiB.*: --optimizer latent8 needs .*--budget {kib}KiB or more"
    with pytest.raises(BudgetError, match=message):
        largest_batch_size(mlp(), budget_bytes=needed - 1, preset=preset)
    with pytest.raises(BudgetError) as caught:
        largest_batch_size(mlp(), budget_bytes=1000, preset=preset)

    assert "--optimizer" not in str(caught.value)
    assert largest_batch_size(mlp(), budget_bytes=needed, preset=preset) >= 1


@pytest.mark.parametrize("preset", ["standard", "paper"])
def test_other_presets_and_threads_that_would_fit_are_named(preset: str) -> None:
    least = plan_memory(mlp(), batch_size=1).peak_bytes
    kib = -(-least // 1024)

    with pytest.raises(BudgetError, match=rf"What would fit: --preset bitfleet needs {kib} KiB, or give"):
        largest_batch_size(mlp(), budget_bytes=least, preset=resolve_preset(preset))
    with pytest.raises(BudgetError, match=rf"and 4 thread\(s\) needs .*: --threads 1 needs {kib} KiB, or give"):
        largest_batch_size(mlp(), budget_bytes=least, preset=resolve_preset(), threads=4)


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(12.587, "12.6 times less"), (1.25, "1.25 times less"), (1.05, "4.8 % less"), (0.8, "25.0 % more")],
)
def test_a_ratio_is_said_in_words(ratio: float, text: str) -> None:
    assert describe_ratio(ratio) == text

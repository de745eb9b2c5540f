"""The work in a step against counts by hand, and bounds, energy and boards against their arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest

from bnncore.bench.boards import BOARDS, PAPER_ON_3B_PLUS, model_boards
from bnncore.bench.bounds import bound_seconds, bounds_for
from bnncore.bench.counting import PhaseWork, add_work, count_layers, count_step
from bnncore.bench.phases import Achieved
from bnncore.energy.model import modelled_energy
from bnncore.energy.rapl import open_rapl
from bnncore.optimizer import resolve_preset
from bnncore.zoo import binarynet, build, cnv, mlp

BITFLEET = resolve_preset()


def test_a_dense_network_counted_by_hand() -> None:
    # 784-256-256-256-256-10: 784 * 256 = 200,704; 3 * 256 * 256 + 256 * 10 = 199,168.
    work = count_step(mlp(), 100, BITFLEET)

    assert work["forward"].macs == {"input": 20_070_400, "binary": 19_916_800}
    assert work["recompute"].macs == work["forward"].macs
    assert work["grad_w"].macs == {"input_gradient": 20_070_400, "gradient": 19_916_800}
    assert work["grad_x"].macs == {"gradient": 19_916_800}
    assert work["rest"].macs == {}


def test_a_convolutional_network_counted_by_hand() -> None:
    # Valid 3 x 3 convolutions on maps of 32, 30 | 14, 12 | 5, 3, so 30, 28, 12, 10, 3, 1 wide at their outputs:
    first = 30 * 30 * 27 * 64
    inner = 28 * 28 * 576 * 64 + 12 * 12 * 576 * 128 + 10 * 10 * 1152 * 128 + 3 * 3 * 1152 * 256 + 1 * 2304 * 256
    inner += 256 * 512 + 512 * 512 + 512 * 10

    work = count_step(cnv(), 1, BITFLEET)

    assert work["forward"].macs == {"input": first, "binary": inner}
    assert work["grad_x"].macs == {"gradient": inner}
    assert round((first + inner) / 1e6) == 59


def test_padded_convolutions_count_their_padding() -> None:
    small = binarynet(input_shape=(4, 4, 1), widths=(2,), convs_per_stage=1, dense_widths=(), classes=3)

    work = count_step(small, 10, BITFLEET)

    # 16 positions * 9 * 1 * 2; after the pool 2 x 2 x 2 = 8 numbers to 3 classes.
    assert work["forward"].macs == {"input": 10 * 16 * 9 * 2, "binary": 10 * 8 * 3}


def test_float_presets_have_no_second_forward() -> None:
    for name in ("standard", "paper"):
        work = count_step(mlp(), 100, resolve_preset(name))

        assert "recompute" not in work
        assert work["forward"].macs == {"float": 39_987_200}
        assert work["grad_x"].macs == {"float": 19_916_800}


def test_bytes_moved_counted_by_hand() -> None:
    # One dense layer, 8 inputs to 2 classes, 4 samples; latent8 keeps a byte a weight, and its bit is written too.
    tiny = mlp(input_shape=(8,), widths=(), classes=2)

    ours, standard = count_step(tiny, 4, BITFLEET), count_step(tiny, 4, resolve_preset("standard"))

    assert ours["forward"].num_bytes == 4 * 8 + 16 // 8 + 8 // 8  # bytes in, weights' bits, signs out
    assert ours["grad_w"].num_bytes == 4 * 8 + 8  # input again, gradients of 8 products
    assert ours["grad_x"].num_bytes == 0
    assert ours["rest"].num_bytes == 8 + 8 + 2 * 16 * 9 // 8  # gradient in and out, state and bits read and written
    assert standard["forward"].num_bytes == 4 * (32 + 16 + 2 * 8 + 8)
    assert standard["rest"].num_bytes == 4 * (8 + 8 + 8 + 16 + 2 * 3 * 16)


def test_bounds_are_products_a_cycle() -> None:
    avx512, avx2 = bounds_for("avx512"), bounds_for("avx2")

    assert avx512["binary"].macs_per_cycle == pytest.approx(512 / 3 * 2)
    assert avx512["gradient"].macs_per_cycle == 160
    assert avx512["input"].macs_per_cycle == 64
    assert avx2["binary"].macs_per_cycle == 128
    assert bounds_for("portable") == {}


def test_an_in_order_core_issues_half_as_much() -> None:
    a53, a76 = (bounds_for("neon", f"processor\t: 0\nCPU part\t: {part}\n") for part in ("0xd03", "0xd0b"))

    assert a76["binary"].macs_per_cycle == pytest.approx(2 * a53["binary"].macs_per_cycle)
    assert bounds_for("neon_dotprod", "")["gradient"].macs_per_cycle == 32


def test_a_bound_adds_up_what_different_kernels_need() -> None:
    work = PhaseWork({"binary": 1024, "input": 640})

    # 1024 / (1024 / 3) = 3 cycles and 640 / 64 = 10 cycles, at 1 kHz on two cores
    assert bound_seconds(work, bounds_for("avx512"), 1e3, 2) == pytest.approx(13e-3 / 2)
    assert bound_seconds(work, {}, 1e3, 2) is None
    assert bound_seconds(PhaseWork(), bounds_for("avx512"), 1e3, 2) is None


def test_phases_put_times_and_work_together() -> None:
    work = {"forward": PhaseWork({"binary": 1_024_000}, 1_000), "rest": PhaseWork({}, 500)}

    achieved = Achieved(steps=10, isa="avx512", clock_hz=3e6, threads=1)
    phases = achieved.phases(work, {"forward": 0.02, "rest": 0.01})

    assert phases["forward"]["ms"] == pytest.approx(2)
    assert phases["forward"]["gmacs_per_s"] == pytest.approx(0.512)
    assert phases["forward"]["share_of_bound"] == pytest.approx(3_000 / 3e6 / 2e-3)
    assert phases["forward"]["macs_per_byte"] == 1_024
    assert phases["rest"] == {"ms": pytest.approx(1)}
    assert achieved.phases(work, {}) == {}


def test_layers_count_what_the_step_does() -> None:
    layers = count_layers(cnv(), 100, BITFLEET)

    assert [layer["forward"].total_macs for layer in layers][:2] == [100 * 900 * 27 * 64, 100 * 784 * 576 * 64]
    assert layers[0]["grad_x"].macs == {}
    assert add_work(layers) == count_step(cnv(), 100, BITFLEET)


def test_deep_layers_stand_apart_from_the_first_and_the_narrow() -> None:
    spec = mlp(input_shape=(2048,), widths=(1023, 1024, 2048), classes=10)  # binary: fan-ins 1023, 1024 and 2048
    work = count_layers(spec, 10, BITFLEET)
    achieved = Achieved(steps=2, isa="avx512", clock_hz=3e6, threads=1)

    found = achieved.layers(spec, work, [{"forward": 4.0}, {"forward": 6.0}, {"forward": 1.0}, {"forward": 0.5}])

    assert [layer["fan_in"] for layer in found["layers"]] == [2048, 1023, 1024, 2048]
    assert [layer["name"] for layer in found["layers"]] == ["dense1", "dense2", "dense3", "dense4"]
    assert found["layers"][1]["phases"] == achieved.phases(work[1], {"forward": 6.0})
    deep = found["deep_phases"]["forward"]
    assert set(found["deep_phases"]) == {"forward"}
    assert deep["ms"] == pytest.approx(750)
    assert deep["macs"] == 10 * (1024 * 2048 + 2048 * 10)
    assert deep["share_of_bound"] == pytest.approx(deep["macs"] / (1024 / 3) / 3e6 / 0.75)
    assert achieved.layers(spec, work, []) == {"layers": [], "deep_phases": {}}


def test_a_network_without_deep_layers_has_no_phases_of_theirs() -> None:
    spec = mlp(widths=(8,))
    achieved = Achieved(steps=1, isa="avx512", clock_hz=3e9, threads=1)

    found = achieved.layers(spec, count_layers(spec, 4, BITFLEET), [{"forward": 1.0}, {"forward": 1.0}])

    assert found["deep_phases"] == {}


def test_modelled_energy_is_operations_and_bytes_times_their_constants() -> None:
    work = {"forward": PhaseWork({"binary": 1000, "float": 10}, 80), "grad_w": PhaseWork({"input_gradient": 100}, 0)}

    energy = modelled_energy(work)

    # a bit: 2/8 of 0.03 pJ; a float32 product and sum 4.6 pJ; 8-bit product 0.2 and sum 0.1 pJ; 64 bits of DRAM 1.3 nJ
    assert energy["compute_j"] == pytest.approx(7.5e-12 + 46e-12 + 30e-12)
    assert energy["memory_j"] == pytest.approx(10 * 1.3e-9)
    assert energy["total_j"] == pytest.approx(energy["compute_j"] + energy["memory_j"])
    assert (energy["macs"], energy["bytes"]) == (1110, 80)


def test_energy_counters_wrap_around(tmp_path: Path) -> None:
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    for name, text in (("name", "package-0\n"), ("max_energy_range_uj", "999999\n"), ("energy_uj", "900000\n")):
        (zone / name).write_text(text)
    (tmp_path / "intel-rapl:0:0").mkdir()
    (tmp_path / "intel-rapl:0:0" / "name").write_text("core\n")

    rapl, source = open_rapl(tmp_path)
    assert rapl is not None
    before = rapl.read()
    (zone / "energy_uj").write_text("100000\n")

    assert rapl.joules(before, rapl.read()) == pytest.approx(0.2)
    assert "1 package" in source


def test_without_energy_counters_the_reason_is_told(tmp_path: Path) -> None:
    assert open_rapl(tmp_path) == (None, f"this machine shows no energy counters (no package under {tmp_path})")

    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "name").write_text("package-0\n")
    rapl, reason = open_rapl(tmp_path)

    assert rapl is None
    assert "cannot be read" in reason


@pytest.mark.parametrize(("model", "batch_size"), sorted(PAPER_ON_3B_PLUS))
def test_boards_stand_beside_the_papers_figures(model: str, batch_size: int) -> None:
    result = model_boards(build(model), batch_size, BITFLEET)

    assert list(result["boards"]) == list(BOARDS)
    assert result["paper"] == PAPER_ON_3B_PLUS[model, batch_size]
    assert result["modelled"] is True
    for name, board in result["boards"].items():
        assert board["seconds"] == pytest.approx(board["products_s"] + board["element_wise_s"] + board["memory_s"])
        assert board["joules"] == pytest.approx(board["seconds"] * BOARDS[name].busy_w)
    assert model_boards(build(model), batch_size + 1, BITFLEET)["paper"] is None
    assert model_boards(mlp(widths=(8,)), 200, BITFLEET)["paper"] is None


def test_a_boards_products_by_hand() -> None:
    tiny = mlp(input_shape=(8,), widths=(), classes=2)  # 16 products of each kind: forward, again, weight gradient

    board = model_boards(tiny, 1, BITFLEET)["boards"]["Raspberry Pi 3B+"]

    assert board["products_s"] == pytest.approx(3 * 16 / 4.7e9 / (4 * 0.6))
    assert board["element_wise_s"] == pytest.approx((2 + 16) * 30 / (1.4e9 * 4))

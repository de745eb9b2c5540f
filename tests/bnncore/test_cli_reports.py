"""``bitfleet memory``, ``bitfleet info`` and ``--help``: what the command says without training."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bnncore.cli.main import main
from bnncore.cli.options import parse_bytes
from bnncore.cli.output import format_bytes
from bnncore.engine import isa_selected
from bnncore.memory import describe_ratio
from bnncore.optimizer import resolve_preset
from tests.bnncore.cli_runs import fail, run_json


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """No data folder from outside."""
    monkeypatch.delenv("BITFLEET_DATA", raising=False)


def test_memory_puts_three_algorithms_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    result = run_json(capsys, "memory", "--model", "mlp", "--batch-size", "100", "--optimizer", "latent8")

    assert result["standard"]["total_bytes"] / 2**20 == pytest.approx(7.41, abs=0.006)
    assert result["paper"]["total_bytes"] / 2**20 == pytest.approx(2.66, abs=0.006)
    for column in ("standard", "standard_same_optimizer", "paper", "bitfleet"):
        assert sum(result[column]["variables"].values()) == result[column]["total_bytes"]
    assert result["ratio"] > 12
    assert result["preset_digest"] == resolve_preset(optimizer="latent8").digest


def test_memory_is_readable_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory"]) == 0
    text = capsys.readouterr().out

    assert "mlp 784-256-256-256-256-10, batch 100" in text
    assert "7.41 MiB" in text
    assert "2.66 MiB" in text
    assert "times less than the standard algorithm" in text


def test_a_budget_picks_the_batch_or_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    picked = run_json(capsys, "memory", "--budget", "2MiB")
    kept = run_json(capsys, "memory", "--budget", "2MiB", "--batch-size", "50")

    assert picked["bitfleet"]["total_bytes"] <= picked["budget_bytes"] == 2 << 20
    assert picked["batch_size"] > 100
    assert kept["batch_size"] == 50
    message = fail(capsys, 3, "memory", "--budget", "2MiB", "--batch-size", "30000")
    assert f"the largest that does is {picked['batch_size']}" in message
    assert "What would fit" in fail(capsys, 3, "memory", "--budget", "100KiB")


@pytest.mark.parametrize(
    ("model", "standard", "paper", "ratio", "published"),
    [("cnv", 129.09, 32.92, 3.92, 4.17), ("binarynet", 512.85, 138.15, 3.71, 3.71)],
)
def test_memory_reproduces_the_papers_figures(
    capsys: pytest.CaptureFixture[str], model: str, standard: float, paper: float, ratio: float, published: float
) -> None:
    result = run_json(capsys, "memory", "--model", model)

    assert result["standard"]["total_bytes"] / 2**20 == pytest.approx(standard, abs=0.005)
    assert result["paper"]["total_bytes"] / 2**20 == pytest.approx(paper, abs=0.005)
    assert result["paper"]["ratio"] == pytest.approx(ratio, abs=0.005)
    assert result["paper"]["ratio_as_published"] == pytest.approx(published, abs=0.005)


def test_memory_outlines_any_network(capsys: pytest.CaptureFixture[str]) -> None:
    def heading(*options: str) -> str:
        assert main(["memory", *options]) == 0
        return capsys.readouterr().out.splitlines()[0]

    assert "cnv 32x32x3-64c3-64c3p2-128c3-128c3p2-256c3-256c3-512-512-10" in heading("--model", "cnv")
    assert "sensor1d 128x6-64c1x9p1x2-" in heading("--model", "sensor1d")
    small = ("--widths", "16", "--convs-per-stage", "1", "--dense-widths", "", "--input-shape", "8,8", "--classes", "3")
    assert "binarynet 8x8-16c3p2-3, batch 100" in heading("--model", "binarynet", *small)


def test_a_budget_picks_the_batch_of_the_largest_network(capsys: pytest.CaptureFixture[str]) -> None:
    picked = run_json(capsys, "memory", "--model", "binarynet", "--budget", "64MiB")
    one_more = run_json(capsys, "memory", "--model", "binarynet", "--batch-size", str(picked["batch_size"] + 1))

    assert picked["bitfleet"]["total_bytes"] <= 64 << 20 < one_more["bitfleet"]["total_bytes"]


def test_memory_is_drawn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "cnv.png"

    assert main(["memory", "--model", "cnv", "--plot", str(picture)]) == 0
    assert f"drawn to {picture}" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert 5_000 < picture.stat().st_size < 200_000
    for name in ("a.xyz", "a"):
        assert "must end in .png, .svg, .pdf" in fail(capsys, 3, "memory", "--plot", str(tmp_path / name))
    assert "--plot" in fail(capsys, 3, "memory", "--plot", str(tmp_path / "no" / "a.png"))
    assert "the same file" in fail(capsys, 3, "memory", "--plot", str(picture), "--json", str(picture))
    assert list(tmp_path.iterdir()) == [picture]


@pytest.mark.parametrize("preset", ["bitfleet", "standard"])
def test_the_drawing_says_totals_and_ratios(capsys: pytest.CaptureFixture[str], tmp_path: Path, preset: str) -> None:
    picture, options = tmp_path / "cnv.svg", ["memory", "--model", "cnv", "--preset", preset]
    result = run_json(capsys, *options)

    assert main([*options, "--plot", str(picture)]) == 0

    drawn = re.findall(r"<!-- (.*?) -->", picture.read_text())  # matplotlib repeats each line of text in a comment
    mib = f"{result['bitfleet']['total_bytes'] / 2**20:.3g} MiB"
    engine = [mib, describe_ratio(result["ratio"]), "bitfleet" if preset == "bitfleet" else "bitfleet, preset standard"]
    paper = ["129 MiB", "32.9 MiB", "3.92 times less", "activations", "pool masks"]
    assert {"cnv: memory to train with a batch of 100", *engine, *paper} <= set(drawn)


def test_without_matplotlib_the_drawing_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # what makes Python say that it is not there

    assert "pip install 'bitfleet[plot]'" in fail(capsys, 3, "memory", "--plot", str(tmp_path / "a.png"))


def test_memory_says_ratios_as_people_read_them(capsys: pytest.CaptureFixture[str]) -> None:
    def text(*options: str) -> str:
        assert main(["memory", *options]) == 0
        return capsys.readouterr().out

    assert "\nstandard / this         1.00        1.10        3.92\n" in text("--model", "cnv")
    assert "as its authors count: 4.17" in text("--model", "cnv")
    assert "as its authors count" not in text("--model", "binarynet")
    assert "% less than the standard algorithm" in text("--preset", "standard")
    assert "% more than the standard algorithm" in text("--preset", "standard", "--threads", "8")


def test_options_of_another_model_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    message = fail(capsys, 3, "memory", "--dense-widths", "5")
    assert "--dense-widths does not belong to model 'mlp', which takes --widths. Leave it out" in message
    assert "takes --widths, --dense-widths, --convs" in fail(capsys, 3, "memory", "--model", "cnv", "--kernel", "5")
    assert "must have odd sides" in fail(capsys, 3, "memory", "--model", "sensor1d", "--kernel", "4")
    (tmp_path / "m.json").write_text("{}")
    message = fail(capsys, 3, "memory", "--model", str(tmp_path / "m.json"), "--convs-per-stage", "2")
    assert "--convs-per-stage belongs to a network of the zoo" in message
    for option in ("--classes", "--input-shape"):
        message = fail(capsys, 3, "memory", "--model", str(tmp_path / "m.json"), option, "2")
        assert "--input-shape and --classes belong to a network of the zoo" in message
    assert "preset 'standard' trains with one of adam, sgd, got 'bop'" in fail(
        capsys, 3, "memory", "--preset", "standard", "--optimizer", "bop"
    )


def test_info_says_what_this_machine_can_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    result = run_json(capsys, "info")
    assert main(["info"]) == 0
    text = capsys.readouterr().out

    assert result["isa"] == isa_selected()
    assert "portable" in result["isa_available"]
    assert result["threads"] >= 1
    assert result["cache"] == os.environ["BITFLEET_CACHE"]
    for value in (result["bitfleet"], result["numpy"], result["isa"], result["cache"]):
        assert value in text


@pytest.mark.parametrize("command", ["train", "evaluate", "memory", "bench"])
def test_help_teaches_with_examples(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main([command, "--help"]) == 0

    text = capsys.readouterr().out
    assert "examples:" in text
    assert f"bitfleet {command}" in text


def test_help_imports_no_numpy() -> None:
    script = (
        "import sys\nfrom bnncore.cli.main import main\nmain(['train', '--help'])\nsys.exit('numpy' in sys.modules)"
    )

    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m bnncore.cli memory | true; exit ${{PIPESTATUS[0]}}"

    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("text", "count"),
    [("500000", 500_000), ("64MiB", 64 << 20), ("64m", 64 << 20), ("1.5 GiB", 3 << 29), ("2KB", 2000), ("7b", 7)],
)
def test_amounts_of_memory_are_read_as_people_write_them(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (7_768_896, "7.41 MiB"), (3 << 34, "48.0 GiB")],
)
def test_amounts_of_memory_are_written_for_people(count: int, text: str) -> None:
    assert format_bytes(count) == text

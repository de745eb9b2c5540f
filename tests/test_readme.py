"""The README keeps its word: its snippets run, its commands exist, its links lead somewhere."""

import contextlib
import io
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

import bnncore.cli.main
import edge_client.cli
from server.cli.main import build_parser
from server.jobs import parse_job
from tests.patience import LIMIT_S

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text()
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def commands() -> list[str]:
    """List the README's command lines: those of sh blocks, and those in tables."""
    lines = [line.partition("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return sorted({*lines, *re.findall(r"^\|.*\| `((?:make|bitfleet)\b[^`]+)` \|$", README, re.M)})


def commands_of(program: str) -> list[str]:
    return [command for command in commands() if command.split()[0] == program]


def test_the_readme_names_every_program() -> None:
    assert {command.split()[0] for command in commands()} == {"make", "bitfleet", "bitfleet-server", "bitfleet-client"}


def test_the_python_snippet_prints_what_it_says() -> None:
    (snippet,), (promised,) = blocks("python"), blocks("text")
    output = io.StringIO()

    with contextlib.redirect_stdout(output):
        exec(compile(snippet, "README.md", "exec"), {})

    # The accuracy is the same on every machine; how much a processor's kernels want as scratch may differ.
    (accuracy, kib), (promised_accuracy, promised_kib) = (
        re.fullmatch(r"(.* % right), trained in (\d+) KiB\n", text).groups()  # type: ignore[union-attr]
        for text in (output.getvalue(), promised)
    )
    assert accuracy == promised_accuracy
    assert int(kib) == pytest.approx(int(promised_kib), rel=0.02)


def test_the_job_is_valid() -> None:
    (job,) = blocks("json")

    assert parse_job(json.loads(job)).name == "digits"


@pytest.mark.parametrize("command", commands_of("make"))
def test_make_knows_the_target(command: str) -> None:
    target = command.split()[1]
    text = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, timeout=LIMIT_S, check=True)

    assert f"make {target} " in text.stdout


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one command has prepared of a data set, the next need not."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("command", commands_of("bitfleet"))
def test_a_core_command_runs(
    command: str, data_root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BITFLEET_DATA", str(data_root))
    monkeypatch.setenv("BITFLEET_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(command)[1:]
    # The whole of it but the training itself.
    shortened = [*arguments, "--max-steps", "0"] if arguments[0] == "train" else arguments
    started = [["--checkpoint" if a == "--resume" else a for a in shortened]] if "--resume" in shortened else []

    with contextlib.redirect_stdout(io.StringIO()):
        for run in [*started, shortened]:
            assert bnncore.cli.main.main(run) == 0


@pytest.mark.parametrize("command", commands_of("bitfleet-server"))
def test_a_server_command_is_understood(command: str) -> None:
    assert callable(build_parser().parse_args(shlex.split(command)[1:]).command)


@pytest.mark.parametrize("command", commands_of("bitfleet-client"))
def test_a_client_command_is_understood(command: str) -> None:
    assert edge_client.cli.build_parser().parse_args(shlex.split(command)[1:]).command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_folders_exist(page: Path) -> None:
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    named = [name for name in re.findall(r"^\| `([\w./]+)` \|", text, re.M) if "/" in name and name[0] != "/"]

    assert [link for link in links if not (page.parent / link).exists()] == []
    assert [name for name in named if not (REPOSITORY / name).exists()] == []

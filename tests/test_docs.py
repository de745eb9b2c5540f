"""The pages of docs/ keep their word: programs run, commands exist, jobs are valid, and the site has every page.

`make docs`, which .ci/run calls, builds the site itself and takes a warning for an error.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib as mpl
import pytest
import yaml

import bnncore.cli.main
import edge_client.cli
from server.cli.main import build_parser
from server.jobs import parse_job
from server.strategies import STRATEGIES
from tests.pages import Block, blocks_of, command_lines

REPOSITORY = Path(__file__).resolve().parent.parent
DOCS = REPOSITORY / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md"))
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
LANGUAGES = {"sh", "python", "json", "toml", "yaml", "text", "ini", "dockerfile"}
NOBODYS = "nobody runs or reads this; say why: docs/writing.md"
PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "bitfleet": bnncore.cli.main.build_parser,
    "bitfleet-client": edge_client.cli.build_parser,
    "bitfleet-server": build_parser,
}


def named(blocks: list[Block]) -> list[Any]:
    return [pytest.param(block, id=block.where) for block in blocks]


def test_every_block_says_its_language_and_who_runs_it() -> None:
    unknown = [f"{block.where}: {block.language!r}" for block in BLOCKS if block.language not in LANGUAGES]
    claimed = [(block.where, REPOSITORY / block.run_by) for block in BLOCKS if block.run_by]

    assert unknown == [], f"a block's language is one of {sorted(LANGUAGES)}; output and drawings are text"
    for where, test in claimed:
        assert test.is_file(), where
        assert where.partition(":")[0] in test.read_text(), f"{test} does not name the page of {where}"


@pytest.mark.parametrize("block", named([block for block in BLOCKS if block.language == "sh"]))
def test_commands_are_understood(block: Block) -> None:
    for line in command_lines(block):
        pieces = [shlex.split(piece) for piece in re.split(r"\s(?:\||&&|;)\s|\s>\s", line)]
        problems = [_problem(piece) for piece in pieces if piece]
        wrong = [problem for problem in problems if problem not in (None, NOBODYS)]
        assert wrong == [], f"{block.where}: {line}"
        assert block.run_by or None in problems, f"{block.where}: {line}\n{NOBODYS}"


def _problem(words: list[str]) -> str | None:
    """Say what is wrong with a command, or None where it is known to be right."""
    words = words[1:] if words[0] in ("sudo", "nohup") else words
    program = Path(words[0]).name
    if program in PARSERS:
        complaint = io.StringIO()
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(io.StringIO()):
            try:
                PARSERS[program]().parse_args(words[1:])
            except SystemExit as stop:
                return complaint.getvalue() if stop.code else None
        return None
    if program == "make":
        target = re.escape(words[1])
        return None if re.search(rf"^{target}:.*## ", (REPOSITORY / "Makefile").read_text(), re.M) else "no such target"
    if (
        program in ("python", "python3")
        and words[1] == "-m"
        and words[2].partition(".")[0] in ("benchmarks", "bnncore")
    ):
        return None if importlib.util.find_spec(words[2]) else f"there is no module {words[2]}"
    if program == "python" and words[1].endswith(".py"):
        return None if (REPOSITORY / words[1]).is_file() else f"there is no {words[1]}"
    if program in ("pip", "pipx") and words[1] == "install":
        extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        asked = {extra for word in words for extra in re.findall(r"\[(.*)\]", word) for extra in extra.split(",")}
        return f"no extra {asked - set(extras)}" if asked - set(extras) else None
    return NOBODYS


@pytest.mark.parametrize(
    "block", named([b for b in BLOCKS if b.language in ("json", "toml", "yaml") and not b.not_run])
)
def test_files_are_well_formed_and_jobs_valid(block: Block) -> None:
    readers: dict[str, Callable[[str], Any]] = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load}
    read = readers[block.language]
    is_part = block.language == "json" and block.text.lstrip().startswith('"')  # keys of an object
    value = read(f"{{{block.text}}}" if is_part else block.text)

    if isinstance(value, dict) and {"model", "rounds", "classes"} <= set(value):
        parse_job(value)


@pytest.fixture
def as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(mpl.rcParams, "backend", "Agg")
    before = dict(STRATEGIES)
    yield
    sys.modules.pop("page", None)
    STRATEGIES.clear()
    STRATEGIES.update(before)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def programs() -> list[Any]:
    """List the pages with blocks that are run here."""
    wanted = [block for block in BLOCKS if block.is_run or (block.language == "python" and not block.run_by)]
    pages = {block.where.partition(":")[0] for block in wanted}
    return [page for page in PAGES if page.name in pages]


@pytest.mark.usefixtures("as_it_was")
@pytest.mark.parametrize("page", programs(), ids=lambda page: page.name)
def test_a_page_is_a_program_that_runs(page: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITFLEET_DATA", str(data_root))
    namespace = vars(sys.modules.setdefault("page", ModuleType("page")))  # dataclasses look their module up
    with contextlib.redirect_stdout(io.StringIO()):
        for block in blocks_of(page):
            for line in command_lines(block) if block.is_run else ():
                assert bnncore.cli.main.main(shlex.split(line)[1:]) == 0, f"{block.where}: {line}"
            if block.language == "python" and not block.run_by:
                code = compile("\n" * int(block.where.split(":")[1]) + block.text, str(page), "exec")
                if not block.not_run:
                    exec(code, namespace)


def test_the_index_lists_every_page_once() -> None:
    index = (DOCS / "index.md").read_text()
    listed = [
        line
        for toctree in re.findall(r"^```\{toctree\}\n(.*?)^```$", index, re.M | re.S)
        for line in toctree.splitlines()
        if line and not line.startswith(":")
    ]
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in PAGES} - {"index"}
    by_hand = {page for page in pages if not page.startswith("results/")}

    assert sorted(listed) == sorted(by_hand | {"results/*"}), "a new page is listed in docs/index.md: docs/writing.md"


EXAMPLES = {
    "binary_cnn.py": r"9988 .* 9872 of one bit.*in PyTorch: 9\d\.\d %.*on 4 devices: 9\d\.\d %.*Sequential of 9",
    "new_strategy.py": r"fedavg: .*8\d\.\d % after.*fedavgm: .*(8[7-9]|9\d)\.\d % after",
    "picture_folders.py": r"both devices: disc, square, stripes\naccuracy on all of them: ([6-9]\d|100)\.\d %",
}
"""What each prints, with numbers that are far from chance."""


def test_there_is_a_check_for_every_example() -> None:
    assert sorted(EXAMPLES) == sorted(path.name for path in (DOCS / "examples").glob("*.py"))


@pytest.mark.usefixtures("as_it_was")
@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_example_does_what_it_says(name: str) -> None:
    if name == "binary_cnn.py":
        pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location(f"example_{name[:-3]}", DOCS / "examples" / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        spec.loader.exec_module(module)
        module.main()

    assert re.search(EXAMPLES[name], output.getvalue(), re.S), output.getvalue()

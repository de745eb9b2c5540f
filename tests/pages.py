"""Blocks of code in Markdown pages, with what the pages say about running them: docs/writing.md has the rules."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\S*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$", re.M | re.S)
_NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*$")
_RUN = re.compile(r"<!-- run -->\s*$")
_RUN_BY = re.compile(r"<!-- run by (\S+) -->\s*$")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
      where: page and line, for messages.
      language: what stands behind the fence; empty: nothing.
      text: its lines, without the indent of the fence.
      not_run: why it is not run; empty: the page does not say so.
      run_by: the test that runs it; empty: the page does not say so.
      is_run: whether the page wants its commands run, not only understood.
    """

    where: str
    language: str
    text: str
    not_run: str
    run_by: str
    is_run: bool


def blocks_of(page: Path) -> list[Block]:
    """Read all fenced blocks of a page, directives left out."""
    source = page.read_text()
    found = []
    for match in _FENCE.finditer(source):
        if match["language"].startswith("{"):
            continue
        before, indent = source[: match.start()], match["indent"]
        text = "".join(line.removeprefix(indent) for line in match["text"].splitlines(keepends=True))
        not_run, run_by = _NOT_RUN.search(before), _RUN_BY.search(before)
        found.append(
            Block(
                f"{page.name}:{before.count(chr(10)) + 1}",
                match["language"],
                text,
                not_run[1] if not_run else "",
                run_by[1] if run_by else "",
                bool(_RUN.search(before)),
            )
        )
    return found


def command_lines(block: Block) -> list[str]:
    """List the commands of a block, continued lines joined, without those that say that they are not run."""
    if block.not_run:
        return []
    lines = re.sub(r"\\\n\s*", "", block.text).splitlines()
    asked = [line for line in lines if not re.search(r"# not run: \S", line)]
    commands = [re.sub(r"(^|\s)#.*", "", line).strip().removeprefix("$ ") for line in asked]
    return [command for command in commands if command]

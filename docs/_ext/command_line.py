"""A directive that writes down a program's commands from its parser: ``{command-line} module:function``."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Iterator

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class CommandLine(SphinxDirective):
    """One section a command, with what its --help says."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Make the sections."""
        module, _, function = self.arguments[0].partition(":")
        os.environ["COLUMNS"] = "100"
        parser = getattr(importlib.import_module(module), function)()
        return [self._section(command) for command in commands(parser)]

    def _section(self, parser: argparse.ArgumentParser) -> nodes.section:
        section = nodes.section(ids=[nodes.make_id(parser.prog)])
        section += nodes.title(text=parser.prog)
        text = parser.format_help()
        section += nodes.literal_block(text, text, language="text")
        self.state.document.note_explicit_target(section)
        return section


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield a parser and those of its subcommands, in the order in which --help lists them."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in dict.fromkeys(action.choices.values()):
                yield from commands(child)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("command-line", CommandLine)
    return {"parallel_read_safe": True}

"""Versions of bitfleet from git that processes can be started of, side by side with those of this checkout."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import bnncore._native
from bnncore.errors import ConfigurationError

CHECKOUT = Path(__file__).resolve().parent.parent.parent
FIRST_WITH_A_RULE = 12
"""The schema with which versions began to share a database (``docs/upgrades.md``)."""

_NATIVE = ("bnncore/native", "CMakeLists.txt")
_MIGRATIONS = Path("server") / "storage" / "migrations" / "versions"
_OLDEST_READER = re.compile(r'^oldest_reader = "(\d+)"$', re.M)


@dataclass(frozen=True)
class Version:
    """One version's source and the interpreter that imports it.

    Attributes:
      name: its commit, or ``checkout``.
      tree: its source.
      python: the interpreter, which finds bitfleet in ``tree`` and all else where this process finds it.
      schema: the newest revision that it knows.
      oldest_reader: the revision that a version must know at least to share that schema with it.
    """

    name: str
    tree: Path
    python: str
    schema: int
    oldest_reader: int

    @classmethod
    def of_this_checkout(cls) -> Self:
        return cls("checkout", CHECKOUT, sys.executable, *_schema_of(CHECKOUT))

    @classmethod
    def from_git(cls, revision: str, folder: Path) -> Self:
        """Lay a revision of this repository out, with an environment of its own.

        The native module is this checkout's own, built once.

        Args:
          revision: as git names it.
          folder: for both, made here.

        Raises:
          ConfigurationError: there is no such revision, or its native module is another one, or it has no replicas
            that share a database with others.
        """
        commit = _git("rev-parse", "--verify", "--short", f"{revision}^{{commit}}").strip()
        if changed := _git("diff", "--name-only", commit, "--", *_NATIVE).splitlines():
            raise ConfigurationError(
                f"{revision}: the sources of its native module are not those of this checkout, {changed[0]} for one. "
                "Take a revision that has the same, or check out and build one that has"
            )
        tree = folder / "tree"
        tree.mkdir(parents=True)
        archive = folder / "tree.tar"
        _git("archive", "--format=tar", f"--output={archive}", commit)
        with tarfile.open(archive) as tar:
            tar.extractall(tree, filter="data")
        archive.unlink()
        schema = _schema_of(tree)
        if min(schema) < FIRST_WITH_A_RULE or not (tree / "benchmarks" / "replicas" / "devices.py").exists():
            raise ConfigurationError(
                f"{revision}: it is from before several coordinators of different versions shared a database"
            )
        native = Path(bnncore._native.__file__)
        (tree / "bnncore" / native.name).symlink_to(native)
        return cls(commit, tree, str(_make_environment(folder / "venv", tree)), *schema)

    def command(self, module: str, *arguments: str) -> list[str]:
        """Return a command that runs a module of this version; its working folder must be ``tree``."""
        return [self.python, "-m", module, *arguments]


def check_side_by_side(old: Version, new: Version) -> None:
    """See that the rule lets both use one database.

    Raises:
      ConfigurationError: it does not.
    """
    if new.oldest_reader > old.schema:
        raise ConfigurationError(
            f"{new.name} shares its schema with versions that know {new.oldest_reader:04d}, {old.name} knows up to "
            f"{old.schema:04d}: by the rule they do not work side by side; go by way of a version in between"
        )


def _schema_of(tree: Path) -> tuple[int, int]:
    """Newest revision of a source's schema, and its oldest reader; zeros where it has none."""
    newest = max((tree / _MIGRATIONS).glob("[0-9]*_*.py"), default=None, key=lambda path: path.name)
    reader = None if newest is None else _OLDEST_READER.search(newest.read_text())
    return (0, 0) if newest is None or reader is None else (int(newest.name.partition("_")[0]), int(reader[1]))


def _make_environment(folder: Path, tree: Path) -> Path:
    """Make an environment that looks into ``tree`` first; gives its interpreter.

    Its ``.pth`` file names the folders of this process's packages. What ``.pth`` files there do, an editable
    installation of bitfleet among them, holds for this process alone.
    """
    venv.create(folder, symlinks=True)
    packages = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    paths: Sequence[Path | str] = (tree, tree / "proto", sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    (Path(packages) / "version.pth").write_text("".join(f"{path}\n" for path in dict.fromkeys(paths)))
    return folder / "bin" / "python"


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(CHECKOUT), *arguments], capture_output=True, text=True, check=False, timeout=600
    )
    if done.returncode:
        raise ConfigurationError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout

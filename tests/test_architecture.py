"""The house rules that a machine can check: who may import whom, what is public, how long a file may be."""

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import LIMIT_S

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("bnncore", "edge_client", "server")
MODULES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))
SOURCES = sorted(
    path
    for folder in (*PACKAGES, "benchmarks", "proto", "tests")
    for pattern in ("*.py", "*.cc", "*.h")
    for path in (REPOSITORY / folder).rglob(pattern)
    if "_pb2" not in path.name
)

# What a module must not import, by the start of its own name. The server's domain knows no transport and no database:
# api and rpc lead to coordinator, which leads to strategies and storage.base.
FORBIDDEN = {
    "bnncore": ("edge_client", "server", "bitfleet", "grpc", "fastapi", "sqlalchemy"),
    "edge_client": ("server", "fastapi", "sqlalchemy"),
    "server": ("edge_client",),
    "server.coordinator": (
        "server.api",
        "server.replicas",
        "server.rpc",
        "server.storage.sql",
        "bitfleet",
        "grpc",
        "fastapi",
        "sqlalchemy",
    ),
    "server.strategies": ("server.api", "server.rpc", "server.coordinator", "server.storage", "bitfleet", "grpc"),
    "server.storage": (
        "server.api",
        "server.rpc",
        "server.coordinator",
        "server.identity",
        "server.replicas",
        "bitfleet",
        "grpc",
        "fastapi",
    ),
    "server.identity": (
        "server.api",
        "server.rpc",
        "server.coordinator",
        "server.storage.sql",
        "bitfleet",
        "grpc",
        "fastapi",
        "sqlalchemy",
    ),
    "server.api": ("server.rpc", "server.storage.sql", "bitfleet", "grpc", "sqlalchemy"),
    "server.dashboard": ("server.rpc", "server.storage.sql", "bitfleet", "grpc", "sqlalchemy", "bokeh"),
    "server.replicas": ("server.api", "server.rpc", "server.identity", "bitfleet", "grpc", "fastapi"),
    "server.rpc": ("server.api", "server.storage.sql", "fastapi", "sqlalchemy"),
}


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
    return name.removesuffix(".__init__")


def lies_in(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Yield every imported module's full name and its line, wherever in the file the import stands."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = node.module or ""
            if node.level:
                base = module_name(path).split(".")
                base = base if path.name == "__init__.py" else base[:-1]
                base = base[: len(base) - node.level + 1]
                home = ".".join([*base, *([home] if home else [])])
            yield home, node.lineno
            # `from server import api` imports server.api, if that is a module.
            yield from ((f"{home}.{alias.name}", node.lineno) for alias in node.names)


def loaded_by(statement: str) -> set[str]:
    """Return the top-level names of the modules that a fresh interpreter holds after ``statement``."""
    code = f"{statement}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "proto")])}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S, check=False, env=environment
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_imports_run_one_way() -> None:
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{line} imports {name}"
        for path in MODULES
        for package, forbidden in FORBIDDEN.items()
        if lies_in(module_name(path), package)
        for name, line in imports(path)
        if any(lies_in(name, other) for other in forbidden)
    ]

    assert wrong == []


def test_torch_is_imported_nowhere_but_in_bnncore_nn() -> None:
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{line}"
        for path in MODULES
        if not lies_in(module_name(path), "bnncore.nn")
        for name, line in imports(path)
        if lies_in(name, "torch")
    ]

    assert wrong == []


def test_the_core_imports_cryptography_in_one_place() -> None:
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{line}"
        for path in MODULES
        if lies_in(module_name(path), "bnncore") and module_name(path) != "bnncore.secure.crypto"
        for name, line in imports(path)
        if lies_in(name, "cryptography")
    ]

    assert wrong == []


def test_adding_up_needs_no_cryptography() -> None:
    adding = "from bnncore.secure import Context, ExchangeRules, RingLayout, RingSegment, RingVector\n"
    adding += "RingVector.zeros(RingLayout((RingSegment('votes', 9, 3),))).add(bytes(192))"

    assert "cryptography" not in loaded_by("import bnncore.secure")
    assert "cryptography" not in loaded_by(adding)
    # And where there is none, all the rest works.
    everything = "for name in bnncore.__all__: getattr(bnncore, name)"
    loaded_by(f"import sys\nsys.modules['cryptography'] = None\nimport bnncore\n{everything}\n{adding}")


RUNS_WHAT_IT_READS = {
    "pickle",
    "_pickle",
    "cPickle",
    "shelve",
    "marshal",
    "dill",
    "cloudpickle",
    "joblib",
    "yaml",
    "code",
}
"""Modules whose readers can run what their input names."""


MAKES_PLAIN_VALUES_ALONE = {
    "bnncore/data/pickles.py",  # reads CIFAR-10 by three names: tests/bnncore/test_data_cifar10.py
    "server/job_files/safe_yaml.py",  # by the safe loader: tests/server/job_files/test_reading.py
}


def test_nothing_foreign_is_unpickled_or_run() -> None:
    wrong = []
    for path in MODULES:
        where = str(path.relative_to(REPOSITORY))
        if where not in MAKES_PLAIN_VALUES_ALONE:
            wrong += [f"{where}:{line}" for name, line in imports(path) if name.partition(".")[0] in RUNS_WHAT_IT_READS]
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            unpickles = any(word.arg == "allow_pickle" and ast.unparse(word.value) != "False" for word in node.keywords)
            loads = called in ("np.load", "numpy.load", "torch.load")
            if called in ("eval", "exec", "compile", "__import__") or unpickles or (loads and not node.keywords):
                wrong.append(f"{where}:{node.lineno}")

    assert wrong == []


@pytest.mark.parametrize("statement", ["import bnncore.errors", "import edge_client.agent"])
def test_a_small_process_stays_small(statement: str) -> None:
    heavy = {"numpy", "torch", "safetensors", "scipy", "sklearn"}

    assert loaded_by(statement) & heavy == set()


def test_who_only_asks_a_coordinator_loads_none() -> None:
    assert loaded_by("import server.client") & {"cryptography", "fastapi", "grpc", "numpy", "sqlalchemy"} == set()


def test_the_core_needs_neither_torch_nor_scikit_learn() -> None:
    assert (
        loaded_by("import bnncore\nfor name in bnncore.__all__: getattr(bnncore, name)") & {"torch", "sklearn"} == set()
    )


@pytest.mark.parametrize("package", sorted(module_name(path) for path in MODULES if path.name == "__init__.py"))
def test_public_names_are_written_down_once_and_exist(package: str) -> None:
    if package == "bnncore.nn":  # most of its names import torch when they are first used
        pytest.importorskip("torch")
    module = importlib.import_module(package)
    names = getattr(module, "__all__", [])  # its order is ruff's business

    assert len(names) == len(set(names))
    assert [name for name in names if not hasattr(module, name)] == []


def test_no_file_is_too_long_to_be_read() -> None:
    lengths = {str(path.relative_to(REPOSITORY)): path.read_text().count("\n") for path in SOURCES}

    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_no_module_is_named_after_nothing() -> None:
    vague = {"common", "helpers", "manager", "misc", "utils"}

    assert [str(path.relative_to(REPOSITORY)) for path in SOURCES if path.stem in vague] == []

"""What every test can rely on: where the data are, folders of its own, and the same random examples every time."""

import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.logs import logs_as_before
from tests.s3_server import S3Server, why_no_s3

REPOSITORY = Path(__file__).resolve().parent.parent

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders that nobody has had yet; beside the others, which pytest counts for each that it makes."""
    root = tmp_path_factory.mktemp("homes")
    return (root / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def own_folders(homes: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep caches and homes of a test, and of the processes it starts, out of the user's."""
    home = next(homes)
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("BITFLEET_CACHE", str(home / "cache"))


@pytest.fixture(autouse=True)
def own_logs() -> Iterator[None]:
    """Undo how a command that ran in this process set its logs up."""
    with logs_as_before():
        yield


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Let PyTorch, where a test has imported it, use one thread: in networks this small more of them only wait."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the public data sets: $BITFLEET_DATA, or the one beside the repository."""
    root = Path(os.environ.get("BITFLEET_DATA") or REPOSITORY.parent / "shared" / "data")
    if not root.is_dir():
        pytest.skip(f"no data sets: {root} is not a folder; set BITFLEET_DATA to one that holds mnist/")
    return root


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[S3Server]:
    if problem := why_no_s3():
        pytest.skip(problem)
    with S3Server() as server:
        yield server


@pytest.fixture
def s3_server(_s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """An S3 server, with its credentials in the environment; a test takes a prefix of its own."""
    for name, value in _s3_server.environ.items():
        monkeypatch.setenv(name, value)
    return _s3_server

"""What every test can rely on: where the data are, folders of its own, and the same random examples every time."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parent.parent

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep caches and homes of a test, and of the processes it starts, out of the user's."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    monkeypatch.setenv("BITFLEET_CACHE", str(home / "cache"))


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

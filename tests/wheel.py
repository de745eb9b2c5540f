"""The wheel of this checkout, built as a user does and once for all tests."""

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

from tests.test_packaging import REPOSITORY

_PARTS = ("bnncore", "edge_client", "server", "proto/bitfleet")
_FILES = ("pyproject.toml", "CMakeLists.txt", "constraints.txt")
_LIMIT_S = 900


def built_wheel() -> Path:
    """Give the wheel for this machine, in ``build/dist``; it is built when none of these sources lies there."""
    folder = REPOSITORY / "build" / "dist" / _digest_of_sources()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not list(folder.glob("bitfleet-*.whl")):
            constraints = str(REPOSITORY / "constraints.txt")
            subprocess.run(
                [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, REPOSITORY],
                env=os.environ | {"PIP_CONSTRAINT": constraints, "PIP_BUILD_CONSTRAINT": constraints},
                timeout=_LIMIT_S,
                check=True,
            )
    (wheel,) = folder.glob("bitfleet-*.whl")
    return wheel


def _digest_of_sources() -> str:
    digest = hashlib.sha256()
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *_PARTS, *_FILES],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        check=True,
    )
    for name in sorted(filter(None, listed.stdout.decode().split("\0"))):
        path = REPOSITORY / name
        if path.is_file():
            digest.update(f"{name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]

"""A PostgreSQL server of one's own that can be stopped, killed and started again."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from tests.patience import LIMIT_S


def postgres_binaries() -> Path | None:
    """The newest installed version's folder of binaries."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


def why_no_postgres() -> str | None:
    """Say what keeps PostgreSQL from being started here, None where nothing does."""
    if postgres_binaries() is None:
        return "no PostgreSQL server under /usr/lib/postgresql; install the package postgresql"
    if _other_user() is not None:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            return "PostgreSQL does not run as root and there is no user 'postgres'"
    return None


class PostgresServer:
    """A cluster on a socket in a temporary folder; leaving the block stops it and removes the folder.

    PostgreSQL refuses to run as root; for root it runs as its own user.

    Args:
      settings: as in ``postgresql.conf``, e.g. ``{"shared_preload_libraries": "pg_stat_statements"}``.

    Attributes:
      url: of its database, for SQLAlchemy.
      conninfo: the same for psycopg.
    """

    def __init__(self, **settings: str) -> None:
        binaries = postgres_binaries()
        assert binaries is not None, why_no_postgres()
        self._binaries = binaries
        self._user = _other_user()
        self._folder = Path(tempfile.mkdtemp(prefix="bfpg-"))
        self._data = self._folder / "data"
        self._settings = {"listen_addresses": "", "unix_socket_directories": str(self._folder), **settings}
        self.url = f"postgresql+psycopg://bitfleet@/postgres?host={self._folder}"
        self.conninfo = f"host={self._folder} user=bitfleet dbname=postgres"

    def __enter__(self) -> Self:
        try:
            if self._user is not None:
                shutil.chown(self._folder, self._user)
            self._run(self._binaries / "initdb", "-D", self._data, "-U", "bitfleet", "-A", "trust", "--no-sync")
            self.start()
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(subprocess.CalledProcessError, FileNotFoundError):
            self.stop("immediate")
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def pid(self) -> int:
        """Of the postmaster, whose children are all other processes."""
        return int((self._data / "postmaster.pid").read_text().splitlines()[0])

    def start(self) -> None:
        """Start it. After a kill the last processes of before may hold that up for a moment."""
        options = " ".join(f"-c {name}='{value}'" for name, value in self._settings.items())
        command = (
            self._binaries / "pg_ctl",
            "-D",
            self._data,
            "-o",
            options,
            "-l",
            self._folder / "log",
            "-w",
            "-t",
            f"{LIMIT_S:.0f}",
            "start",
        )
        end = time.monotonic() + LIMIT_S
        while True:
            try:
                return self._run(*command)
            except subprocess.CalledProcessError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    def stop(self, mode: str = "fast") -> None:
        """Stop it: ``fast`` ends its clients' connections, ``immediate`` leaves the log to be read again too."""
        self._run(self._binaries / "pg_ctl", "-D", self._data, "-m", mode, "-w", "-t", f"{LIMIT_S:.0f}", "stop")

    def kill(self) -> None:
        """Kill the postmaster; the others see that and end."""
        os.kill(self.pid, signal.SIGKILL)

    def query(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Ask the database."""
        import psycopg

        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def _run(self, *command: str | Path) -> None:
        # by a command: to change the user by itself, subprocess forks, which a process that speaks gRPC may not survive
        other = () if self._user is None else ("runuser", "-u", self._user, "--")
        subprocess.run(
            (*other, *command), check=True, cwd=self._folder, timeout=LIMIT_S,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip


def _other_user() -> str | None:
    return "postgres" if os.geteuid() == 0 else None

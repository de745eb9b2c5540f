"""PostgreSQL, an object store, replicas of ``bitfleet-server serve`` and a balancer, all on this machine."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx

from benchmarks.faults.fleet import NotRecoveredError, wait_for
from benchmarks.replicas.balancer import Balancer, Front
from benchmarks.replicas.versions import Version
from tests.postgres_server import PostgresServer
from tests.s3_server import S3Server

LIMIT_S = 180.0
"""Longest wait for anything but a job."""
HEARTBEAT_S = 5.0

_READY = b"bitfleet-server ready"
_T = TypeVar("_T")


class Replica:
    """One coordinator's process, which may be killed and started again at the same ports.

    Args:
      number: among the site's.
      command: its arguments.
      log: what it says, over all of its lives.
      environ: beside this process's.
      people_port: of its own.
      version: of bitfleet; another one counts from the next start on.
    """

    def __init__(
        self,
        number: int,
        command: list[str],
        log: Path,
        environ: Mapping[str, str],
        people_port: int,
        version: Version,
    ) -> None:
        self.number = number
        self.log = log
        self.people_port = people_port
        self.version = version
        self._command = command
        self._environ = dict(environ)
        self._process: subprocess.Popen[bytes] | None = None
        self._written = 0

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def is_ready(self) -> bool:
        """Whether it has said so, in this life."""
        return self.is_alive and _READY in self.log.read_bytes()[self._written :]

    def start(self) -> None:
        """Start it; it is not ready then."""
        self._written = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.version.command("server", "serve", *self._command),
                cwd=self.version.tree,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | self._environ,
            )

    def await_ready(self) -> None:
        """Wait until it serves.

        Raises:
          NotRecoveredError: it ended, or does not serve in time.
        """

        def is_ready() -> bool:
            if not self.is_alive:
                raise NotRecoveredError(f"replica {self.number} ended by itself: {self.log.read_text()[-3000:]}")
            return self.is_ready

        wait_for(f"replica {self.number} to be ready", is_ready, LIMIT_S)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def end(self) -> None:
        """Tell it to end (SIGTERM), and see that it does.

        Raises:
          NotRecoveredError: it does not, or not with 0.
        """
        assert self._process is not None
        self._process.terminate()
        try:
            code = self._process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            raise NotRecoveredError(f"replica {self.number} was told to end and did not") from None
        if code:
            raise NotRecoveredError(f"replica {self.number} ended with {code}: {self.log.read_text()[-3000:]}")


class Site:
    """One fleet's machines, in small; leaving the block ends all processes.

    Args:
      root: a folder for everything.
      replicas: how many.
      options: of ``bitfleet-server serve`` beside where things are.
      version: of bitfleet that the replicas are started of; that of this checkout, when it is not given.

    Attributes:
      grpc: ``HOST:PORT`` for devices, at the balancer.
      url: for people, at the balancer.
    """

    def __init__(
        self,
        root: Path,
        replicas: int,
        *options: str,
        counts_statements: bool = False,
        version: Version | None = None,
    ) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        settings = {"max_connections": "200"}
        if counts_statements:
            settings |= {"shared_preload_libraries": "pg_stat_statements"}
        self.postgres = PostgresServer(**settings)
        self.store = S3Server()
        self._counts_statements = counts_statements
        self._stack = ExitStack()
        ports = free_ports(2 + 2 * replicas)
        grpc, http, *own = ports
        grpc_ports, http_ports = own[:replicas], own[replicas:]
        self.grpc, self.url = f"127.0.0.1:{grpc}", f"https://127.0.0.1:{http}"
        self.balancer = Balancer(root, Front(grpc, grpc_ports), Front(http, http_ports))
        self._ports = list(zip(grpc_ports, http_ports, strict=True))
        self._options = options
        self._version = version or Version.of_this_checkout()
        self.replicas: list[Replica] = []

    def __enter__(self) -> Self:
        with self._stack:  # which undoes what had begun when the rest fails
            self._stack.enter_context(self.postgres)
            if self._counts_statements:
                self.postgres.query("CREATE EXTENSION pg_stat_statements")
            self._stack.enter_context(self.store)
            self._start_replicas()
            self._stack.enter_context(self.balancer)
            self._await_balancer()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _start_replicas(self) -> None:
        for number, (grpc, http) in enumerate(self._ports):
            command = [
                *("--grpc", f"127.0.0.1:{grpc}", "--http", f"127.0.0.1:{http}"),
                *("--state", str(self.root / f"replica-{number}"), "--identity", str(self.root / "identity")),
                *("--database", self.postgres.url, "--blobs", self.store.url),
                *("--heartbeat-interval", f"{HEARTBEAT_S:g}", "--settle", "0.2", "--min-free-bytes", "0"),
                *("--enrolments-per-minute", "1000000"),
                *self._options,
            ]
            log = self.root / f"replica-{number}.log"
            replica = Replica(number, command, log, self.store.environ, http, self._version)
            self._stack.callback(replica.kill)
            self.replicas.append(replica)
            replica.start()
            if number == 0:
                replica.await_ready()  # which makes the authority, the tables and the first key
        for replica in self.replicas[1:]:
            replica.await_ready()

    def restart_balancer(self) -> None:
        """End all connections: devices and people come anew."""
        self.balancer.restart()
        self._await_balancer()

    def _await_balancer(self) -> None:
        wait_for("the balancer to reach a replica", self._is_reached, LIMIT_S)

    def start_the_ended(self) -> None:
        """Start replicas that ended by themselves, as systemd and Kubernetes do: one that finds no database ends."""
        for replica in self.replicas:
            if not replica.is_alive:
                replica.start()

    # Asking as people do

    @property
    def ca_pem(self) -> bytes:
        return (self.root / "replica-0" / "identity" / "ca.pem").read_bytes()

    @property
    def key(self) -> str:
        """The first admin key."""
        return (self.root / "replica-0" / "identity" / "admin.key").read_text().strip()

    def client(self, url: str | None = None) -> httpx.Client:
        """A client of the balancer, or of the replica at ``url``."""
        context = ssl.create_default_context(cadata=self.ca_pem.decode())
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=url or self.url, verify=context, headers=headers, trust_env=False, timeout=30)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Ask whichever replica is there, again while none answers."""

        def answer() -> httpx.Response | None:
            try:
                with self.client() as client:
                    response = client.request(method, path, json=body)
            except httpx.TransportError:
                return None
            return None if response.status_code == 503 else response

        return wait_for(f"an answer to {method} {path}", answer, LIMIT_S).raise_for_status().json()

    def create_job(self, job: Mapping[str, Any]) -> str:
        """Create a job; gives its id."""
        return str(self.ask("POST", "/api/v1/jobs", job)["id"])

    def make_token(self, uses: int) -> str:
        """Make a token that enrols so many devices."""
        return str(self.ask("POST", "/api/v1/tokens", {"uses": uses})["token"])

    def lead(self) -> Replica:
        """The replica that leads now, by its own word."""

        def found() -> Replica | None:
            for replica in self.replicas:
                if (said := self.status_of(replica)) and said["is_lead"]:
                    return replica
            return None

        return wait_for("a replica to lead", found, LIMIT_S)

    def status_of(self, replica: Replica) -> dict[str, Any] | None:
        """What a replica says of itself and of the others, None while it says nothing."""
        try:
            with self.client(f"https://127.0.0.1:{replica.people_port}") as client:
                status = client.get("/api/v1/status").raise_for_status().json()
        except httpx.HTTPError:
            return None
        said: dict[str, Any] = status["replica"]
        return said

    def _is_reached(self) -> bool:
        self.balancer.check()
        try:
            with self.client() as client:
                return client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    # Looking into the database and the store

    def payload(self, digest: str) -> bytes:
        """Read a payload from the object store."""
        key = f"fleet/{digest[:2]}/{digest}"
        with contextlib.closing(self.store.client()) as client:
            data: bytes = client.get_object(Bucket=self.store.bucket, Key=key)["Body"].read()
        return data

    def rounds(self, job_id: str) -> dict[int, tuple[str, str | None]]:
        """State and digest of the weights, by round."""
        rows = self.postgres.query(
            "SELECT round_number, state, weights_digest FROM rounds WHERE job_id = %s ORDER BY round_number", job_id
        )
        return {number: (state, digest) for number, state, digest in rows}

    def committed(self, job_id: str) -> int:
        return sum(state == "COMMITTED" for state, _ in self.rounds(job_id).values())

    def await_round(self, job_id: str, number: int, limit_s: float) -> None:
        """Wait until so many rounds are committed.

        Raises:
          NotRecoveredError: the job ended otherwise, or it took too long.
        """

        def is_there() -> bool:
            self.start_the_ended()
            rows = self.postgres.query("SELECT state, reason FROM jobs WHERE job_id = %s", job_id)
            if rows and rows[0][0] == "FAILED":
                raise NotRecoveredError(f"job {job_id} failed: {rows[0][1]}")
            return self.committed(job_id) >= number

        wait_calmly(f"round {number} of {job_id}", is_there, limit_s)


def wait_calmly(what: str, probe: Callable[[], _T | None], limit_s: float) -> _T:
    """``wait_for`` for what takes long and costs something to ask; the database may be away meanwhile."""
    import psycopg

    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        try:
            if found := probe():
                return found
        except psycopg.OperationalError:
            pass
        time.sleep(0.25)
    raise NotRecoveredError(f"waited {limit_s:.0f} s for {what}")


def free_ports(count: int) -> list[int]:
    """Find ports that nobody listens at.

    They lie outside of the range from which the system gives connections theirs: a replica that starts again finds its
    own free.
    """
    ports: list[int] = []
    for port in random.sample(range(20_000, 32_000), 2_000):
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError("no free ports from 20000 to 32000")


def small_job(name: str, rounds: int, devices: int, **changes: Any) -> dict[str, Any]:
    """A job that all devices must take part in, so that its digests follow from what they send."""
    return {
        "name": name,
        "model": {"zoo": "mlp", "params": {"widths": [64, 64]}},
        "classes": [str(digit) for digit in range(10)],
        "input_shape": [8, 8],
        "rounds": rounds,
        "min_devices": devices,
        "quorum": devices,
        "deadline_s": 1e5,
        "local_steps": 1,
        **changes,
    }

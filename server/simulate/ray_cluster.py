"""Simulated devices that train on Ray: workers on one machine or many, each of which can be lost.

A device's task is a function of what it is given, so whoever does it, and however often, gives the same update. The
samples and a round's model are put into Ray's object store once, where all workers of a machine read them without a
copy; what a device remembers between its tasks stays with the coordinator and travels with the task. A worker that is
lost is replaced, and what it was at is done again by another one.

Ray's processes trust each other: whoever reaches a cluster's ports, and has its token where it asks for one, can run
code there. One that is started here asks for one, which Ray keeps in ~/.ray (docs.ray.io, "Security").
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import math
import os
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType, TracebackType
from typing import Any, Self

import numpy as np

from bnncore.cli.output import format_bytes
from bnncore.codec import payload_digest
from bnncore.data import Dataset
from bnncore.errors import ConfigurationError
from bnncore.federated import LocalUpdate
from bnncore.optimizer import resolve_preset
from bnncore.plan import plan_memory
from bnncore.processors import usable_processors
from server.jobs import JobConfig
from server.simulate.errors import SimulationError
from server.simulate.ray_worker import Order, Samples, Worker
from server.simulate.summing import Handed, RoundStart
from server.simulate.trainers import Assignment

_log = logging.getLogger(__name__)

_WORKER_BYTES = 160 << 20
"""Of a worker before it trains: Python, Ray, NumPy."""

_CONNECT_S = 20.0

_MOST_LOSSES = 5
"""Workers that may be lost over one device, or while they start, before it is taken to be what kills them."""


def _import_ray() -> ModuleType:
    # Before it is imported: it calls nobody, and does not tell what a later version changes.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigurationError(
            f"--engine ray needs Ray, which cannot be imported ({error}): pip install 'bitfleet[sim]'"
        ) from error
    module: ModuleType = ray
    return module


class RayCluster:
    """A cluster for the time of a ``with`` block: one that is there, or one of this machine alone.

    Args:
      address: of the one that is there, HOST:PORT; None: it is started here.
      workers: devices that train at once, at most; None: as many as there is room for.
      cpus_per_device: processors for each; below 1 several share one.

    Raises:
      ConfigurationError: Ray is not installed, the cluster does not answer, or an argument is no such number.
    """

    def __init__(self, address: str | None, workers: int | None, cpus_per_device: float) -> None:
        is_valid = 0 < cpus_per_device < 1 or (cpus_per_device >= 1 and cpus_per_device == math.floor(cpus_per_device))
        if not is_valid or math.isinf(cpus_per_device):
            raise ConfigurationError(
                f"--cpus-per-device must be above 0, and a whole number where it is above 1, got {cpus_per_device:g}"
            )
        self._ray = _import_ray()
        self._address = address
        self._workers = workers
        self._cpus = cpus_per_device
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Self:
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        with contextlib.ExitStack() as stack:
            if self._address is None:
                # Sockets lie there, whose paths may have 107 characters: not in a temporary folder of a long name.
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bitfleet-ray-", dir="/tmp"))
                asked = math.ceil((self._workers or 0) * self._cpus)
                processors = asked or max(1, int(usable_processors()))
                self._ray.init("local", num_cpus=processors, include_dashboard=False, _temp_dir=folder, **quiet)
            else:
                self._join(self._address, quiet)
            stack.callback(self._ray.shutdown)
            self._exit = stack.pop_all()
        return self

    def _join(self, address: str, quiet: Mapping[str, Any]) -> None:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), _CONNECT_S).close()  # Ray itself would try for minutes
            self._ray.init(address, **quiet)
        except (OSError, RuntimeError, ValueError, self._ray.exceptions.RayError) as error:
            raise ConfigurationError(
                f"--ray-address must be HOST:PORT of a Ray cluster, got {address!r}, which cannot be joined: {error}; "
                "one that asks for a token needs RAY_AUTH_MODE=token here too"
            ) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()

    def trainer(self, job: JobConfig, dataset: Dataset) -> RayTrainer:
        """Have workers for a job, on shares of a data set.

        Raises:
          ConfigurationError: no machine of the cluster has room for a device.
        """
        threads = max(1, int(self._cpus))
        preset = resolve_preset(job.preset, job.optimizer)
        plan = plan_memory(job.spec, batch_size=job.batch_size, preset=preset, threads=threads)
        memory = _WORKER_BYTES + plan.peak_bytes
        rooms = [
            (node["Resources"].get("CPU", 0.0), int(node["Resources"].get("memory", 0)))
            for node in self._ray.nodes()
            if node["Alive"]
        ]
        places = sum(min(int(cpus / self._cpus), free // memory) for cpus, free in rooms)
        if places == 0:
            found = ", ".join(f"{cpus:g} processors with {format_bytes(free)}" for cpus, free in rooms)
            raise ConfigurationError(
                f"a device takes {self._cpus:g} processors (--cpus-per-device) and {format_bytes(memory)} (its worker, "
                f"the network, a batch), and no machine of the cluster has both: {found}"
            )
        samples = self._ray.put(Samples.of(dataset, with_keys=job.local_validation > 0))
        actor = self._ray.remote(num_cpus=self._cpus, memory=memory, max_restarts=0, max_task_retries=0)(Worker)
        version = importlib.metadata.version("bitfleet")
        most = min(places, self._workers or places, job.cohort_size or places)
        return RayTrainer(self._ray, lambda: actor.remote(samples, threads, version), most)


class RayTrainer:
    """Trains devices on Ray; see ``server.simulate.trainers.Trainer``.

    Args:
      ray: the module.
      start_worker: starts one.
      places: how many.
    """

    def __init__(self, ray: ModuleType, start_worker: Callable[[], Any], places: int) -> None:
        self._ray = ray
        self._start_worker = start_worker
        self.places = places
        self.adds_up = True
        self._workers: set[Any] = set()
        self._free: asyncio.Queue[Any] = asyncio.Queue()
        self._starting: set[asyncio.Task[None]] = set()
        self._round_number = 0
        self._payloads: dict[str, Any] = {}
        """Of the round, in the object store, by digest."""

    async def train(self, assignment: Assignment) -> LocalUpdate:
        """See ``Trainer``."""
        lesson, source = assignment.lesson, assignment.source
        self._begin(lesson.round_number)
        model = None if source.model is None else self._put(source.model)
        given = (lesson, assignment.share.numbers, model, *map(self._put, source.steps))
        update: LocalUpdate = await self._call("train", lesson.device_id, given)
        return update

    async def train_together(
        self, start: RoundStart, payloads: Mapping[str, bytes], assignments: Sequence[Assignment]
    ) -> Handed:
        """See ``Trainer``."""
        self._begin(start.base.version + 1)
        used = {digest: self._put(payload, digest) for digest, payload in payloads.items()}

        def named(payload: bytes | memoryview) -> str:
            digest = payload_digest(payload)
            used[digest] = self._put(payload, digest)
            return digest

        orders = [
            Order(
                assignment.lesson,
                assignment.share.numbers,
                None if assignment.source.model is None else named(assignment.source.model),
                tuple(map(named, assignment.source.steps)),
            )
            for assignment in assignments
        ]
        first, last = assignments[0].lesson.device_id, assignments[-1].lesson.device_id
        devices = first if first == last else f"{first} to {last}"
        handed: Handed = await self._call("train_together", devices, (start, orders, list(used), *used.values()))
        return handed

    async def _call(self, method: str, devices: str, given: tuple[Any, ...]) -> Any:
        """Have a worker do something, and another one where it is lost."""
        if not self._workers:
            for _ in range(self.places):
                self._enlist()
        loss = ""
        for _ in range(_MOST_LOSSES):
            worker = await self._free.get()
            if isinstance(worker, SimulationError):
                self._free.put_nowait(worker)  # for all that wait
                raise worker
            try:
                outcome = await getattr(worker, method).remote(*given)
            except self._ray.exceptions.RayTaskError as error:
                raise SimulationError(f"{devices}: {error.cause}") from error
            except self._ray.exceptions.RayError as error:
                loss = str(error)
                _log.warning("event=worker_lost devices=%r reason=%r", devices, loss)
                self._dismiss(worker)
                self._enlist()
                continue
            self._free.put_nowait(worker)
            return outcome
        raise SimulationError(f"{_MOST_LOSSES} workers were lost while they trained {devices}: {loss}")

    def _begin(self, round_number: int) -> None:
        if round_number != self._round_number:
            self._payloads.clear()
            self._round_number = round_number

    def _put(self, payload: bytes | memoryview, digest: str | None = None) -> Any:
        digest = digest or payload_digest(payload)
        if digest not in self._payloads:
            self._payloads[digest] = self._ray.put(np.frombuffer(payload, np.uint8))
        return self._payloads[digest]

    def _enlist(self) -> None:
        task = asyncio.create_task(self._start(), name="ray-worker")
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def _start(self) -> None:
        """Have one worker more, from when it has started: the cluster may have work of others."""
        loss = ""
        for _ in range(_MOST_LOSSES):
            worker = self._start_worker()
            self._workers.add(worker)
            try:
                await worker.start.remote()
            except self._ray.exceptions.RayError as error:
                loss = str(error)
                self._dismiss(worker)
                continue
            self._free.put_nowait(worker)
            return
        self._free.put_nowait(SimulationError(f"no worker starts on Ray: {loss}"))

    def _dismiss(self, worker: Any) -> None:
        self._workers.discard(worker)
        self._ray.kill(worker)

    def stop(self) -> None:
        """See ``Trainer``."""
        for task in self._starting:
            task.cancel()
        for worker in list(self._workers):
            self._dismiss(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

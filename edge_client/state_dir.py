"""The state folder: what a device keeps so that every step survives a power cut.

::

    lock              held by the one agent that may write here; its PID, for people
    device_id         the device's lasting name
    models/           payloads of models by digest (model_cache.py)
    steps/            payloads of steps between models, the same way
    feedback/         by job: what its last accepted update could not carry
    task/             of the task at hand; emptied when another one starts
    pending/          an update on its way to the coordinator: complete or absent
    outbox.jsonl      the ledger of what left (outbox.py)
    last_task.json    how the last task ended, for ``bitfleet-client status``

A finished update becomes pending by one rename of the task's folder, after its files are on the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bnncore.durable import replace_file, sync_folder
from edge_client.child import FEEDBACK_FILE, UPDATE_FILE
from edge_client.errors import StateFolderError
from edge_client.model_cache import STEP_CAPACITY, ModelCache
from edge_client.outbox import Outbox

__all__ = ["PendingUpdate", "StateDir"]

_HEADER_FILE = "header.json"
_FEEDBACK_JOBS = 4
"""Jobs whose feedback is kept."""
_LOCK_TRIES = 5
_LOCK_PAUSE_S = 0.1


@dataclass(frozen=True)
class PendingUpdate:
    """What is known of an update before its bytes are sent; the fields are those of the wire's UpdateHeader."""

    task_id: str
    job_id: str
    round_number: int
    model_digest: str
    update_digest: str
    total_bytes: int
    num_examples: int
    codec: str
    loss: float
    accuracy: float
    steps: int
    seconds: float
    training_seconds: float
    peak_pss_bytes: int
    downloaded_bytes: int


class StateDir:
    """One device's state folder. Reading is open to all; ``lock`` comes before writing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.task = root / "task"
        self.models = ModelCache(root / "models")
        self.steps = ModelCache(root / "steps", STEP_CAPACITY)
        self.outbox = Outbox(root / "outbox.jsonl")
        self._pending = root / "pending"
        self._feedback = root / "feedback"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder and hold it alone. The kernel lets go of the lock however this process ends.

        Raises:
          StateFolderError: another agent holds it, or the folder cannot be made or written.
        """
        try:
            self.models.root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StateFolderError(
                f"the state folder {self.root} must be a folder that this user can write to: {error.strerror}; "
                "name another one with --state"
            ) from error
        try:
            if not _acquire(descriptor):
                holder = os.pread(descriptor, 32, 0).decode().strip() or "unknown"
                raise StateFolderError(
                    f"another agent (PID {holder}) uses the state folder {self.root}; "
                    "stop it, or give this one a folder of its own with --state"
                )
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def holder(self) -> int | None:
        """Tell the PID of the agent that holds the folder, None when there is none. Takes nothing from it."""
        try:
            with open(self.root / "lock", "rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(file.read().strip() or b"0")
        except FileNotFoundError:
            pass
        return None

    def device_id(self) -> str | None:
        """Read the device's kept name; None before it has one."""
        try:
            return (self.root / "device_id").read_text().strip() or None
        except FileNotFoundError:
            return None

    def settle_device_id(self, given: str | None) -> str:
        """Give the device its lasting name: the kept one, else the given one, else a new one.

        Raises:
          StateFolderError: the given name is not the kept one (an update of another device may lie in the folder),
            or a new one cannot be kept.
        """
        kept = self.device_id()
        if kept is not None:
            if given not in (None, kept):
                raise StateFolderError(
                    f"the state folder {self.root} belongs to device {kept!r}, --device-id says {given!r}; "
                    "leave --device-id out, or use another --state"
                )
            return kept
        device_id = given or f"dev-{secrets.token_hex(6)}"
        try:
            _write(self.root / "device_id", f"{device_id}\n")
        except OSError as error:
            raise StateFolderError(f"the device's name cannot be kept in {self.root}: {error}") from error
        return device_id

    def new_task(self) -> Path:
        """Give an empty folder for a task; what an interrupted one left there goes."""
        self.clear_task()
        self.task.mkdir()
        return self.task

    def clear_task(self) -> None:
        """Remove the folder of the task at hand, if there is one."""
        shutil.rmtree(self.task, ignore_errors=True)

    def keep_pending(self, update: PendingUpdate) -> None:
        """Turn the task's folder, which holds a durable update file, into the pending update, in one step.

        Raises:
          OSError: the disk is full or not writable; there is no pending update then.
        """
        _write(self.task / _HEADER_FILE, json.dumps(asdict(update)))
        os.rename(self.task, self._pending)
        sync_folder(self.root)

    def pending(self) -> PendingUpdate | None:
        """Read the update that waits to be sent; None when there is none.

        Raises:
          StateFolderError: the disk has damaged it; ``drop_pending`` is all that is left.
        """
        try:
            update = PendingUpdate(**json.loads((self._pending / _HEADER_FILE).read_text()))
            size = self.pending_file.stat().st_size
        except FileNotFoundError:
            if not self._pending.exists():
                return None
            raise StateFolderError(f"the pending update in {self._pending} lacks a file") from None
        except (ValueError, TypeError) as error:
            raise StateFolderError(f"the pending update in {self._pending} is damaged: {error}") from error
        if size != update.total_bytes:
            raise StateFolderError(f"{self.pending_file} must hold {update.total_bytes} bytes, has {size}")
        return update

    @property
    def pending_file(self) -> Path:
        """The pending update's payload."""
        return self._pending / UPDATE_FILE

    def feedback(self, job_id: str) -> Path:
        """Name the file of what a job's last accepted update could not carry; there is none before the first."""
        # Named by a digest: the job's id comes from the coordinator.
        return self._feedback / f"{hashlib.sha256(job_id.encode()).hexdigest()}.safetensors"

    def settle_feedback(self, job_id: str) -> None:
        """Let what the pending update could not carry take the place of the job's earlier: the update was accepted.

        Comes before ``drop_pending``; done again after a power cut it changes nothing. The files of the jobs that were
        settled last stay.

        Raises:
          OSError: the disk refused.
        """
        newest = self._pending / FEEDBACK_FILE
        if not newest.exists():
            return
        self._feedback.mkdir(exist_ok=True)
        os.rename(newest, self.feedback(job_id))
        sync_folder(self._feedback)
        sync_folder(self._pending)
        others = sorted(self._feedback.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for path in others[_FEEDBACK_JOBS:]:
            path.unlink()

    def drop_pending(self) -> None:
        """Remove the pending update; a power cut leaves it whole or gone."""
        gone = self.root / "dropped"
        shutil.rmtree(gone, ignore_errors=True)
        if self._pending.exists():
            os.rename(self._pending, gone)
            sync_folder(self.root)
            shutil.rmtree(gone, ignore_errors=True)

    def note_last_task(self, facts: dict[str, Any]) -> None:
        """Remember how the last task went, for people; a full disk is no reason to fail."""
        with contextlib.suppress(OSError):
            _write(self.root / "last_task.json", json.dumps(facts))

    def last_task(self) -> dict[str, Any] | None:
        """Read how the last task went; None when there was none."""
        try:
            facts = json.loads((self.root / "last_task.json").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return facts if isinstance(facts, dict) else None


def _acquire(descriptor: int) -> bool:
    # Tried for a moment: `holder` takes the lock for an instant, and an agent that was killed may be ending still.
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE_S)
    return False


def _write(path: Path, text: str) -> None:
    with replace_file(path) as file:
        file.write(text.encode())

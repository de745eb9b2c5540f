"""The state folder: what a device keeps so that every step survives a power cut.

::

    lock              held by the one agent that may write here; its PID, for people
    device_id         the device's lasting name
    models/           by job: payloads of models by digest (model_cache.py)
    steps/            payloads of steps between models, by digest
    local-state/      by job: what came with its last accepted update, to stay here (bnncore.federated.local_state)
    best/             by job: the model that did best on this device's validation part (best_model.py)
    try.safetensors   the model of the last ``bitfleet-client try``
    identity/         what the device is known by (identity.py)
    task/             of the task at hand; emptied when another one starts
    pending/          an update on its way to the coordinator: complete or absent
    exchange/         a task's part in a secure sum (exchange_folder.py)
    peers.json        keys of devices that this one has added up updates with (peer_keys.py)
    outbox.jsonl      the ledger of what left (outbox.py), and its head, outbox.head (chain.py)
    daily_use.json    what was taken, sent and written today (daily_use.py)
    last_task.json    how the last task ended, for ``bitfleet-client status``
    budgets.json      what training may take, as the agent was started, for ``bitfleet-client status``
    pause.json        what holds the task at hand, for ``bitfleet-client status``; absent where nothing does

A finished update becomes pending by one rename of the task's folder, after its files are on the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bnncore.durable import drop_folder, replace_file, sync_folder
from edge_client.child import LOCAL_STATE_FILE, UPDATE_FILE
from edge_client.errors import StateFolderError
from edge_client.exchange_folder import ExchangeFolder
from edge_client.identity import IdentityFolder
from edge_client.job_files import JobFiles
from edge_client.model_cache import STEP_CAPACITY, ModelCache, ModelCaches
from edge_client.outbox import Outbox, utc_now
from edge_client.peer_keys import PeerKeys
from edge_client.pending_update import PendingUpdate, read_header, write_header
from edge_client.records import read_json

__all__ = ["StateDir"]

_LOCK_TRIES = 5
_LOCK_PAUSE_S = 0.1


class StateDir:
    """One device's state folder. Reading is open to all; ``lock`` comes before writing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.task = root / "task"
        self.identity = IdentityFolder(root / "identity")
        self.models = ModelCaches(root / "models")
        self.steps = ModelCache(root / "steps", STEP_CAPACITY)
        self.local_states = JobFiles(root / "local-state")
        self.best_models = JobFiles(root / "best")
        self.outbox = Outbox(root / "outbox.jsonl")
        self.exchange = ExchangeFolder(root / "exchange")
        self.peers = PeerKeys(root / "peers.json")
        self.trial_file = root / "try.safetensors"
        self.daily_use_file = root / "daily_use.json"
        self._pending = root / "pending"

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
            return (self.root / "device_id").read_text(errors="replace").strip() or None
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
        """Remove the folder of the task at hand, if there is one, and what a power cut left of a folder that went."""
        shutil.rmtree(self.task, ignore_errors=True)
        shutil.rmtree(self.root / "dropped", ignore_errors=True)

    def keep_pending(self, update: PendingUpdate) -> None:
        """Turn the task's folder, which holds a durable update file, into the pending update, in one step.

        Raises:
          OSError: the disk is full or not writable; there is no pending update then.
        """
        write_header(self.task, update)
        os.rename(self.task, self._pending)
        sync_folder(self.root)

    def pending(self) -> PendingUpdate | None:
        """Read the update that waits to be sent, and check it; None when there is none.

        Raises:
          StateFolderError: the disk has damaged it; ``drop_pending`` is all that is left.
        """
        return read_header(self._pending, UPDATE_FILE)

    @property
    def pending_file(self) -> Path:
        """The pending update's payload."""
        return self._pending / UPDATE_FILE

    def settle(self, update: PendingUpdate) -> None:
        """Let what came with the pending update take the place of what its job had: the update was accepted.

        Comes before ``drop_pending``; done again after a power cut it changes nothing.

        Raises:
          OSError: the disk refused.
        """
        self.local_states.adopt(update.job_id, self._pending / LOCAL_STATE_FILE)

    def drop_pending(self) -> None:
        """Remove the pending update; a power cut leaves it whole or gone."""
        drop_folder(self._pending, self.root / "dropped")

    def purge(self) -> None:
        """Remove everything in the folder, and the folder. The caller holds the lock."""
        for path in self.root.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()
        (self.root / "lock").unlink()
        self.root.rmdir()

    def note_last_task(self, facts: dict[str, Any]) -> None:
        """Remember how the last task went, for people; a full disk is no reason to fail."""
        with contextlib.suppress(OSError):
            _write(self.root / "last_task.json", json.dumps(facts))

    def last_task(self) -> dict[str, Any] | None:
        """Read how the last task went; None when there was none."""
        try:
            facts = read_json((self.root / "last_task.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return facts if isinstance(facts, dict) else None

    def note_pause(self, task_id: str, reasons: list[str]) -> None:
        """Remember for people what holds the task at hand; an empty list: nothing does."""
        with contextlib.suppress(OSError):
            if reasons:
                _write(self.root / "pause.json", json.dumps({"task_id": task_id, "at": utc_now(), "reasons": reasons}))
            else:
                (self.root / "pause.json").unlink(missing_ok=True)

    def note_budgets(self, facts: dict[str, Any]) -> None:
        """Remember for people what training may take."""
        with contextlib.suppress(OSError):
            _write(self.root / "budgets.json", json.dumps(facts))

    def budgets(self) -> dict[str, Any] | None:
        """Read what training may take; None before an agent was started."""
        try:
            facts = read_json((self.root / "budgets.json").read_bytes())
        except (OSError, ValueError):
            return None
        return facts if isinstance(facts, dict) else None

    def pause(self) -> dict[str, Any] | None:
        """Read what holds the task at hand: ``task_id``, ``at``, ``reasons``; None where nothing does."""
        try:
            facts = read_json((self.root / "pause.json").read_bytes())
        except (OSError, ValueError):
            return None
        is_whole = isinstance(facts, dict) and isinstance(facts.get("reasons"), list)
        return facts if is_whole and self.holder() is not None else None


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

"""What a device keeps of a secure sum: the folder ``exchange`` of its state folder, for its owner alone (0700).

::

    header.json       what is known of the trained task (pending_update.py)
    task              the task, as it came last (wire.Task)
    vector            what the device learnt, in the clear: never sent
    local-state...    for the job's next task
    over              number of the last attempt that has ended
    counted           there when the masked update was taken: what was learnt is in the sum, if there will be one
    attempt/          of one attempt, removed at its end: keys are never used again
      participant     one line of JSON (``Progress``), then the device's secrets; replaced as a whole after each step
      order           the order at hand (wire.ExchangeOrder)
      keys, shares, masked, reveal   payloads; one counts once ``participant`` says so

Every file is complete or absent. A payload is made anew, from the secrets of the step before it, until ``participant``
names it, and from then on it is sent as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bnncore.durable import drop_folder, replace_file, sync_folder
from edge_client.child import LOCAL_STATE_FILE, VECTOR_FILE
from edge_client.pending_update import PendingUpdate, read_header, write_header
from edge_client.records import read_json

__all__ = ["ExchangeFolder", "Progress"]

_PRIVATE = 0o600


@dataclass
class Progress:
    """How far an attempt has come on this device."""

    attempt: int = 0
    num_members: int = 0
    """As the coordinator said when it asked for shares; 0 before."""
    made: dict[str, dict[str, str]] = field(default_factory=dict)
    """By step (keys, shares, masked, reveal): ``digest`` of its payload, and of the ``order`` that it answers."""


class ExchangeFolder:
    """The folder. The agent and, between its start and its end, a child of it write there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.task_file = root / "task"
        self.vector_file = root / VECTOR_FILE
        self.local_state_file = root / LOCAL_STATE_FILE
        self.attempt = root / "attempt"
        self.order_file = self.attempt / "order"
        self._over = root / "over"
        self._counted = root / "counted"
        self._participant = self.attempt / "participant"

    def keep(self, trained: Path, update: PendingUpdate, task: bytes) -> None:
        """Turn the folder of a trained task, which holds a durable vector, into this one, in one step.

        Raises:
          OSError: the disk is full or not writable; there is no such folder then.
        """
        write_header(trained, update)
        with replace_file(trained / self.task_file.name, mode=_PRIVATE) as file:
            file.write(task)
        trained.chmod(0o700)
        os.rename(trained, self.root)
        sync_folder(self.root.parent)

    def read(self) -> tuple[PendingUpdate, bytes] | None:
        """Read what is known of the trained task, and the task; None when there is no such folder.

        Raises:
          StateFolderError: the disk has damaged it; ``drop`` is all that is left.
          OSError: it cannot be read.
        """
        update = read_header(self.root, VECTOR_FILE)
        return None if update is None else (update, self.task_file.read_bytes())

    def begin_attempt(self, task: bytes) -> None:
        """Begin an attempt; what an older one left goes first.

        Raises:
          OSError: the disk refused.
        """
        drop_folder(self.attempt, self.root.parent / "dropped")
        with replace_file(self.task_file, mode=_PRIVATE) as file:
            file.write(task)
        self.attempt.mkdir(mode=0o700)
        sync_folder(self.root)

    def progress(self) -> Progress | None:
        """Read how far the attempt has come; None: it has not begun, or has ended."""
        if not self.attempt.exists():
            return None
        progress, _ = self.participant()
        return progress

    def participant(self) -> tuple[Progress, bytes]:
        """Read how far the attempt has come, and the device's secrets of it; none before its first step.

        Raises:
          ValueError: the disk has damaged it.
        """
        try:
            line, _, secrets = self._participant.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return Progress(), b""
        return _progress_of(read_json(line)), secrets

    def payload(self, step: str) -> Path:
        """Name the file of a step's payload."""
        return self.attempt / step

    def keep_order(self, order: bytes) -> None:
        """Write the order at hand, for the child that answers it."""
        with replace_file(self.order_file, mode=_PRIVATE) as file:
            file.write(order)

    def keep_step(self, progress: Progress, step: str, order: bytes, payload: bytes, secrets: bytes) -> None:
        """Write a step's payload, then that it counts together with the device's secrets after it.

        Raises:
          OSError: the disk refused; the step is not made then.
        """
        with replace_file(self.payload(step), mode=_PRIVATE) as file:
            file.write(payload)
        digest = hashlib.sha256(payload).hexdigest()
        progress.made[step] = {"digest": digest, "order": hashlib.sha256(order).hexdigest()}
        with replace_file(self._participant, mode=_PRIVATE) as file:
            file.write(json.dumps(asdict(progress)).encode() + b"\n" + secrets)

    @property
    def is_counted(self) -> bool:
        """Whether the masked update of some attempt was taken."""
        return self._counted.exists()

    def count(self) -> None:
        """Remember that the masked update was taken."""
        with replace_file(self._counted):
            pass

    def is_over(self, attempt: int) -> bool:
        """Whether an attempt has ended: its keys are not used again, and no others in it."""
        try:
            return attempt <= int(self._over.read_text())
        except (FileNotFoundError, ValueError):
            return False

    def end_attempt(self, attempt: int) -> None:
        """End an attempt: its secrets go.

        Raises:
          OSError: the disk refused.
        """
        with replace_file(self._over) as file:
            file.write(str(attempt).encode())
        drop_folder(self.attempt, self.root.parent / "dropped")

    def drop(self) -> None:
        """Remove it all; a power cut leaves it whole or gone."""
        drop_folder(self.root, self.root.parent / "dropped")


def _progress_of(value: Any) -> Progress:
    match value:
        case {"attempt": int(attempt), "num_members": int(num_members), "made": dict(made)} if all(
            isinstance(step, dict) and isinstance(step.get("digest"), str) and isinstance(step.get("order"), str)
            for step in made.values()
        ):
            return Progress(attempt, num_members, made)
    raise ValueError("the participant's file is damaged or of another version")

"""What is known of a task that was trained, beside its payload: a file that is checked when it is read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from bnncore.durable import replace_file
from edge_client.errors import StateFolderError
from edge_client.records import as_record, read_json

__all__ = ["PendingUpdate", "read_header", "write_header"]

_HEADER_FILE = "header.json"


@dataclass(frozen=True)
class PendingUpdate:
    """What is known of an update before its bytes are sent; the fields are those of the wire's UpdateHeader.

    Where updates are added up under masks the payload is the vector, which stays here, and of these fields those that
    say something of the data stay here too.
    """

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
    written_bytes: int
    validation_examples: int
    validation_correct: int
    validation_loss: float
    joules: float
    joules_source: str


def write_header(folder: Path, update: PendingUpdate) -> None:
    """Write what is known of a task into its folder.

    Raises:
      OSError: the disk refused.
    """
    header = json.dumps(asdict(update)).encode()
    with replace_file(folder / _HEADER_FILE) as file:
        file.write(header + f"\n{_digest(header)}\n".encode())


def read_header(folder: Path, payload: str) -> PendingUpdate | None:
    """Read what is known of a task, and check it and its payload; None when there is no such folder.

    Args:
      folder: the task's.
      payload: name of its payload's file.

    Raises:
      StateFolderError: the disk has damaged it.
    """
    try:
        header, _, rest = (folder / _HEADER_FILE).read_bytes().partition(b"\n")
        with (folder / payload).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        if not folder.exists():
            return None
        raise StateFolderError(f"what is pending in {folder} lacks a file") from None
    if rest.decode(errors="replace").strip() != _digest(header):
        raise StateFolderError(f"the header of what is pending in {folder} is damaged")
    try:
        update = as_record(PendingUpdate, read_json(header))
    except ValueError as error:
        raise StateFolderError(f"what is pending in {folder} is of another version: {error}") from error
    if found != update.update_digest:
        raise StateFolderError(f"{folder / payload} is damaged: its content has digest {found}")
    return update


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

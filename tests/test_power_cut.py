"""The order in which things reach the disk: what is flushed before what is renamed, and what before what is told.

A kill takes nothing that was written; a power cut takes what was not flushed. These tests record the calls themselves.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnncore.durable import replace_file
from edge_client.child import LOCAL_STATE_FILE, UPDATE_FILE, VECTOR_FILE
from edge_client.exchange_folder import Progress
from edge_client.outbox import Dispatch
from edge_client.state_dir import StateDir
from server.storage.blobs import LocalBlobs
from tests.edge_client.test_state_dir import UPDATE

DATA = b"update"


class Recorder:
    """Notes every flush and every rename below a folder, by name."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self._root = root
        fsync = os.fsync

        def flush(descriptor: int) -> None:
            self.calls.append(f"flush {self._name(os.readlink(f'/proc/self/fd/{descriptor}'))}")
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", flush)
        for call in ("rename", "replace"):
            monkeypatch.setattr(os, call, self._noted(getattr(os, call)))

    def _noted(self, rename: Callable[..., None]) -> Callable[..., None]:
        def call(source: Any, destination: Any) -> None:
            self.calls.append(f"{self._name(source)} -> {self._name(destination)}")
            rename(source, destination)

        return call

    def _name(self, path: Any) -> str:
        """A path below the folder; of a temporary file, its last name and a tilde."""
        name = str(Path(path).relative_to(self._root))
        return re.sub(r"\.([^/]+?)\.\d+\.[0-9a-f]+\.tmp$", r"\1~", name)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    state = StateDir(tmp_path / "state")
    with state.lock():
        pass
    return state


def test_an_update_is_on_the_disk_before_it_is_pending_and_is_sent_only_then(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(state.root, monkeypatch)
    folder = state.new_task()
    for name in (LOCAL_STATE_FILE, UPDATE_FILE):  # as the trainer does
        with replace_file(folder / name) as file:
            file.write(DATA)
    state.keep_pending(UPDATE)
    state.outbox.sending(Dispatch("2026-01-01", "update", "job", 1, "job-1", len(DATA), "d"))

    written = (LOCAL_STATE_FILE, UPDATE_FILE, "header.json")
    assert recorder.calls == [
        *(
            call
            for name in written
            for call in (f"flush task/{name}~", f"task/{name}~ -> task/{name}", "flush task")
        ),
        "task -> pending",
        "flush .",
        "flush outbox.jsonl",
        "flush .",
        "flush outbox.head~",
        "outbox.head~ -> outbox.head",
        "flush .",
    ]  # fmt: skip


def test_what_stays_of_an_accepted_update_is_on_the_disk_before_the_update_goes(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = state.new_task()
    for name in (LOCAL_STATE_FILE, UPDATE_FILE):
        (folder / name).write_bytes(DATA)
    state.keep_pending(UPDATE)

    recorder = Recorder(state.root, monkeypatch)
    state.settle(UPDATE)
    state.drop_pending()

    kept = state.local_states.path("job").relative_to(state.root)
    assert recorder.calls == [
        f"pending/{LOCAL_STATE_FILE} -> {kept}",
        f"flush {kept.parent}",
        "flush pending",
        "pending -> dropped",
        "flush .",
    ]


def test_a_step_of_a_secure_sum_is_on_the_disk_before_it_counts_and_its_secrets_go_at_once(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    (state.new_task() / VECTOR_FILE).write_bytes(DATA)
    exchange = state.exchange

    recorder = Recorder(state.root, monkeypatch)
    exchange.keep(state.task, UPDATE, b"task")
    kept, recorder.calls = recorder.calls, []
    exchange.begin_attempt(b"task")
    exchange.keep_step(Progress(attempt=1), "keys", b"", DATA, b"secrets")
    made, recorder.calls = recorder.calls, []
    exchange.end_attempt(1)

    written = ("header.json", "task")
    assert kept == [
        *(call for name in written for call in (f"flush task/{name}~", f"task/{name}~ -> task/{name}", "flush task")),
        "task -> exchange",
        "flush .",
    ]
    folder = "exchange/attempt"
    assert made == [
        *("flush exchange/task~", "exchange/task~ -> exchange/task", "flush exchange", "flush exchange"),
        *(f"flush {folder}/keys~", f"{folder}/keys~ -> {folder}/keys", f"flush {folder}"),
        *(f"flush {folder}/participant~", f"{folder}/participant~ -> {folder}/participant", f"flush {folder}"),
    ]
    assert recorder.calls == [
        *("flush exchange/over~", "exchange/over~ -> exchange/over", "flush exchange"),
        *(f"{folder} -> dropped", "flush exchange"),
    ]


def test_a_cached_model_is_flushed_before_it_has_its_name(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(DATA).hexdigest()
    cache = state.models.of("job")
    with cache.open_partial(digest) as file:
        file.write(DATA)

    recorder = Recorder(cache.root, monkeypatch)
    assert cache.complete(digest) is not None

    part, whole = f"{digest}.part", f"{digest}.safetensors"
    assert recorder.calls == [f"flush {part}", f"{part} -> {whole}", "flush ."]


def test_payloads_are_flushed_before_they_have_their_names_and_folders_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = LocalBlobs(tmp_path / "blobs")
    writer = blobs.writer()
    writer.write(DATA)

    recorder = Recorder(tmp_path / "blobs", monkeypatch)
    blobs.keep([writer])

    digest = hashlib.sha256(DATA).hexdigest()
    temporary = recorder.calls[0].removeprefix("flush ")
    assert temporary.startswith("tmp/")
    assert recorder.calls == [
        f"flush {temporary}",
        f"{temporary} -> {digest[:2]}/{digest}",
        "flush .",
        f"flush {digest[:2]}",
    ]

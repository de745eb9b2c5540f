"""The named steps at which processes are killed: every way to the disk, and what lies between two of them."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.faults.trap import Step

_SQL = "server.storage.sql:SqlStorage"
_BLOBS = "server.storage.blobs:LocalBlobs"
_WRITER = "server.storage.blobs:LocalBlobWriter"
_COLLECTION = "server.coordinator.collection:Collection"
_AGGREGATION = "server.coordinator.aggregation:Aggregation"
_VERSION = "server.coordinator.versions:VersionWriter"

_STATE = "edge_client.state_dir:StateDir"
_OUTBOX = "edge_client.outbox:Outbox"
_CACHE = "edge_client.model_cache:ModelCache"


def _steps(texts: Iterable[str]) -> tuple[Step, ...]:
    return tuple(Step.parse(text) for text in texts)


def _around(*functions: str) -> list[str]:
    return [f"{when} {function}" for function in functions for when in ("before", "after")]


FIRST_START = _steps(
    [
        *_around(f"{_SQL}.add_job", f"{_SQL}.add_version", f"{_BLOBS}.put", f"{_SQL}.set_job_state"),
        "after server.storage.sql:bring_up_to_date",
    ]
)
"""Of a coordinator that begins its first job."""

COORDINATOR = _steps(
    [
        # each commit to the database: a round opens, collects, is committed; updates; what devices say; evaluations
        *_around(f"{_SQL}.save_round", f"{_SQL}.record_updates", f"{_SQL}.commit_round", f"{_SQL}.set_evaluation"),
        f"after {_SQL}.save_round 2",
        f"after {_SQL}.record_updates 2",
        f"before {_SQL}.record_updates 3",
        # in the middle of a transaction
        *(f"after server.storage.sql:_upsert {count} inside {_SQL}.commit_round" for count in (1, 2, 3)),
        f"after server.storage.sql:_upsert inside {_SQL}.record_updates",
        f"after server.storage.sql:_upsert inside {_SQL}.save_round",
        # an upload: at its first chunk, in its middle, half of its bytes written, not flushed, flushed, renamed
        *(f"after server.coordinator.intake:Chunk.__init__ {count}" for count in (1, 4, 9, 14)),
        *(f"mid {_WRITER}.write {count}" for count in (1, 2)),
        *_around(f"{_WRITER}.write", f"{_WRITER}.flush", f"{_WRITER}.move", f"{_BLOBS}.keep"),
        *(f"{when} os:fsync inside {_BLOBS}.keep" for when in ("before", "after")),
        *(f"{when} os:replace inside {_BLOBS}.keep" for when in ("before", "after")),
        # the sum
        *_around(f"{_AGGREGATION}.add", f"{_AGGREGATION}.finish", f"{_COLLECTION}.accept"),
        f"after {_AGGREGATION}.add 2",
        # the next version: each of its payloads half written, written, flushed, renamed; then its row
        *_around(f"{_VERSION}.write"),
        *(f"mid {_WRITER}.write {count} inside {_VERSION}.write" for count in (1, 2, 3)),
        *(
            f"{when} os:{call} {count} inside {_VERSION}.write"
            for call in ("fsync", "replace")
            for when in ("before", "after")
            for count in (1, 2, 3)
        ),
        # what is no longer needed goes
        *_around(f"{_BLOBS}.delete"),
        f"after {_BLOBS}.delete 2",
    ]
)
"""Of a coordinator in the middle of its work; each comes up in every round."""

RECOVERY = _steps(
    [
        *_around("server.coordinator.disk:Disk.remove_orphans", f"{_COLLECTION}.recover"),
        f"after {_COLLECTION}._fold_again",
        f"before {_SQL}.set_job_state",
        "before server.app.serve:write_endpoint",
        "after server.storage.sql:bring_up_to_date",
    ]
)
"""Of a coordinator that takes up what was left by one killed with updates of an open round."""

LAST_COMMIT = _steps(_around(f"{_SQL}.set_job_state"))
"""Of a coordinator whose job is over."""

DEVICE = _steps(
    [
        # down: the first piece, the middle, whole, checked, renamed
        *(f"mid edge_client.transport:Transport.download {count}" for count in (1, 3)),
        *_around(f"{_CACHE}.open_partial", f"{_CACHE}.adopt", f"{_STATE}.new_task"),
        # training
        *_around("edge_client.trainer_process:Trainer.train"),
        "after edge_client.worker:Worker._on_step",
        # the pending update: each flush and each rename on the way to it, and of the answer after it
        *_around(f"{_STATE}.keep_pending"),
        *(f"{when} os:fsync {count}" for count in range(1, 15) for when in ("before", "after")),
        *(f"{when} os:replace {count}" for count in range(1, 4) for when in ("before", "after")),
        *(f"{when} os:rename {count}" for count in range(1, 5) for when in ("before", "after")),
        # up: in the ledger, at its first chunk, in its middle, acknowledged, noted, settled, dropped
        *_around(f"{_OUTBOX}.sending", "edge_client.transport:Transport.submit", f"{_OUTBOX}.answered"),
        *(f"mid edge_client.transport:Transport._parts {count}" for count in (1, 4, 9)),
        *_around(f"{_STATE}.settle", f"{_STATE}.drop_pending", f"{_STATE}.note_last_task"),
    ]
)
"""Of a device's agent; each comes up in every round."""

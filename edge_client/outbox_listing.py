"""What ``bitfleet-client outbox`` shows: every message that left, and whether the ledger is as it was written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from edge_client.errors import StateFolderError
from edge_client.outbox import UNANSWERED, Dispatch, Report, Request, Talk
from edge_client.state_dir import StateDir

__all__ = ["list_outbox", "verify_outbox"]


def list_outbox(state: StateDir) -> tuple[dict[str, Any], str]:
    """List what left.

    Returns:
      For machines ``payloads``, ``reports`` and ``requests`` to enrol or leave, oldest first, and the sum of all
      ``other`` messages; and for people a table of the first, the requests, and the sums of the rest.
    """
    payloads: list[dict[str, Any]] = []
    reports: list[dict[str, Any]] = []
    requests: list[dict[str, Any]] = []
    other = Talk()
    for entry in state.outbox.entries():
        match entry:
            case Dispatch():
                facts = asdict(entry)
                payloads.append({"round": facts.pop("round_number"), **facts})
            case Report():
                reports.append(asdict(entry))
            case Request():
                requests.append(asdict(entry))
            case Talk():
                other.at = other.at or entry.at
                other.bytes += entry.bytes
                for kind, count in entry.messages.items():
                    other.messages[kind] = other.messages.get(kind, 0) + count
    facts = {"payloads": payloads, "reports": reports, "requests": requests, "other": asdict(other)}
    return facts, "\n".join(_table(payloads, reports, requests, other))


def _table(
    payloads: list[dict[str, Any]], reports: list[dict[str, Any]], requests: list[dict[str, Any]], other: Talk
) -> list[str]:
    lines = [f"{'at':<25} {'kind':<7} {'bytes':>10} {'status':<10} {'round':>5}  {'digest':<12}  {'noise':<9} job"]
    for row in payloads:
        privacy = row["privacy"]
        noise = "none" if privacy is None else f"{privacy['noise_multiplier']:g} x {privacy['clip']:g}"
        lines.append(
            "{at:<25} {kind:<7} {bytes:>10} {status:<10} {round:>5}  {digest:.12}  {noise:<9} {job_id}".format(
                **row, noise=noise
            )
        )
    lines.append(f"{sum(row['bytes'] for row in payloads)} bytes in {len(payloads)} payloads")
    if any(row["status"] == UNANSWERED for row in payloads):
        lines.append(f"{UNANSWERED}: no answer came, so some or all of the bytes left")
    if reports:
        lines.append(
            f"{sum(row['bytes'] for row in reports)} bytes in {len(reports)} reports of tasks that ended without"
        )
    lines += ["{at:<25} {purpose}: {bytes} bytes to {to}, {holds}".format(**row) for row in requests]
    if other.messages:
        kinds = ", ".join(f"{count} of {kind}" for kind, count in other.messages.items())
        lines.append(f"{other.bytes} bytes in other messages since {other.at}: {kinds}")
    return lines


def verify_outbox(state: StateDir, noted: str | None) -> tuple[dict[str, Any], str]:
    """Check the ledger, and what of the payloads in it is still here.

    Args:
      state: the state folder.
      noted: digest of the ledger's head that its owner noted earlier.

    Returns:
      ``intact``, ``lines``, ``head``, ``problems`` and ``notes``; and the same for people.
    """
    verdict = state.outbox.verify(noted)
    problems = [*verdict.problems, *_wrong_payloads(state)]
    facts = {
        "intact": not problems,
        "lines": verdict.lines,
        "head": verdict.head,
        "problems": problems,
        "notes": verdict.notes,
    }
    lines = [
        f"{'intact' if not problems else 'NOT INTACT'}: {verdict.lines} lines, each bound to the one before it",
        f"head {verdict.head}   (note it elsewhere; later: bitfleet-client outbox --verify --noted DIGEST)",
        *(f"problem: {problem}" for problem in problems),
        *(f"note: {note}" for note in verdict.notes),
    ]
    return facts, "\n".join(lines)


def _wrong_payloads(state: StateDir) -> list[str]:
    """Hold the payloads that are still here against what the ledger says of them."""
    try:
        here = list(_payloads_here(state))
    except (StateFolderError, ValueError, OSError) as error:
        return [f"a payload that is still here cannot be checked: {error}"]
    told = {(entry.task_id, entry.kind, entry.attempt): entry.digest for entry in state.outbox.dispatches()}
    return [
        f"{key[1]} of task {key[0]}, which is still here, has the digest {digest}, the ledger says {told[key]}"
        for key, digest in here
        if told.get(key, digest) != digest
    ]


def _payloads_here(state: StateDir) -> Iterator[tuple[tuple[str, str, int], str]]:
    """Give what was or will be sent and still lies here: task, kind and attempt, and the digest of the file."""
    update = state.pending()
    if update is not None:
        yield (update.task_id, "update", 0), update.update_digest
    kept = state.exchange.read()
    if kept is not None and state.exchange.attempt.exists():
        progress, _ = state.exchange.participant()
        for step in progress.made:
            digest = hashlib.sha256(state.exchange.payload(step).read_bytes()).hexdigest()
            yield (kept[0].task_id, step, progress.attempt), digest

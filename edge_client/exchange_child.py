"""The child that answers one step of a secure sum: ``python -m edge_client.exchange_child --parent PID STATE STEP``.

The only place on the device, beside enrolment, with cryptography. It reads the task, the order at hand and the device's
secrets in the state folder's ``exchange`` (``exchange_folder``), leaves the step's payload there, and prints one event:

* ``{"outcome": "done", "written_bytes": ...}``;
* ``{"outcome": "declined" | "failed", "reason": ...}``.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitfleet.v1 import fleet_pb2 as wire
from bnncore.codec import PayloadKind
from bnncore.durable import WRITTEN
from bnncore.errors import ExchangeRefusedError
from bnncore.secure.crypto import load_signer
from bnncore.secure.participant import Participant
from bnncore.secure.terms import Context, ExchangeRules, Signer, Trust
from bnncore.secure.values import Vector
from bnncore.spec import ModelSpec
from edge_client.child import EventWriter, bind_to_parent, child_parser
from edge_client.errors import StateFolderError, TaskDeclinedError, TaskError, public_reason
from edge_client.exchange_folder import Progress
from edge_client.state_dir import StateDir
from edge_client.summed import summed_of
from edge_client.task_file import told_sum

__all__ = ["answer_step", "main"]

logger = logging.getLogger(__name__)


def answer_step(state: StateDir, step: str) -> None:
    """Answer one step of the exchange in a state folder.

    Raises:
      TaskDeclinedError: the device does not take part in what it is asked; the message says why.
      BitfleetError: what is kept here is damaged.
      OSError: the disk refused.
    """
    folder = state.exchange
    task = wire.Task.FromString(folder.task_file.read_bytes())
    order_bytes = folder.order_file.read_bytes() if step != "keys" else b""
    order = wire.ExchangeOrder.FromString(order_bytes)
    try:
        progress, secrets = folder.participant()
    except ValueError as error:
        raise StateFolderError(f"the secrets of a secure sum are damaged: {error}") from error
    if step == "keys":
        progress = Progress(attempt=task.secure.attempt)
        participant = _begin(state, task)
        payload = participant.keys
    else:
        participant = Participant.from_bytes(secrets)
        if step != "shares" and progress.num_members not in (0, order.num_members):
            raise ExchangeRefusedError(
                f"secure aggregation refused: the exchange had {progress.num_members} members, and is now said to have "
                f"{order.num_members}"
            )
        payload = _STEPS[step](state, task, order, participant)
        progress.num_members = order.num_members
    folder.keep_step(progress, step, order_bytes, payload, participant.to_bytes())


def _begin(state: StateDir, task: wire.Task) -> Participant:
    secure = task.secure
    context = Context(task.job_id, task.round_number, secure.attempt, task.model_digest)
    rules = ExchangeRules(secure.min_members, secure.threshold, secure.degree)
    device_id = state.device_id()
    if device_id is None:
        raise StateFolderError(f"the state folder {state.root} has no name of the device")
    return Participant.begin(context, rules, device_id, _signer(state))


def _signer(state: StateDir) -> Signer | None:
    """Give what the device signs with; None: it is not enrolled, as on a link in the clear."""
    if state.identity.read() is None:
        return None
    credentials = state.identity.credentials()
    return load_signer(credentials.key_pem, credentials.certificate_pem)


def _share(state: StateDir, task: wire.Task, order: wire.ExchangeOrder, participant: Participant) -> bytes:
    keys_of = {peer.device_id: peer.keys for peer in order.peers}
    if len(keys_of) != len(order.peers):
        raise ExchangeRefusedError("secure aggregation refused: the coordinator named a member of the exchange twice")
    positions = {peer.device_id: peer.position for peer in order.peers} if task.secure.degree else None
    trust = None
    if state.identity.read() is not None:
        trust = Trust(state.identity.credentials().ca_pem, state.peers.pins())
    shares = participant.share(keys_of, order.num_members, trust, order.graph_seed, positions)
    state.peers.learn(participant.identities)
    return shares


def _mask(state: StateDir, task: wire.Task, order: wire.ExchangeOrder, participant: Participant) -> bytes:
    summed = summed_of(told_sum(task))
    assert summed is not None  # only such tasks have an exchange
    kind: PayloadKind = "update" if task.training.local_steps else "statistics"
    form = summed.form(ModelSpec.from_json(task.spec_json), kind, frozenset(task.local_tensors))
    vector = Vector.from_bytes(form, state.exchange.vector_file.read_bytes())
    ring = vector.to_ring(form.layout(order.num_members))
    return participant.mask({peer.device_id: peer.sealed for peer in order.peers}, ring)


def _reveal(state: StateDir, task: wire.Task, order: wire.ExchangeOrder, participant: Participant) -> bytes:
    return participant.reveal({peer.device_id: peer.survived for peer in order.peers})


_Answer = Callable[[StateDir, wire.Task, wire.ExchangeOrder, Participant], bytes]
_STEPS: dict[str, _Answer] = {"shares": _share, "masked": _mask, "reveal": _reveal}


def main(argv: list[str] | None = None) -> int:
    """Answer one step for the agent, and print one event that says how it went."""
    parser = child_parser("python -m edge_client.exchange_child", __doc__)
    parser.add_argument("state", type=Path)
    parser.add_argument("step", choices=["keys", *_STEPS])
    arguments = parser.parse_args(argv)
    bind_to_parent(arguments.parent)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    events = EventWriter()
    try:
        answer_step(StateDir(arguments.state), arguments.step)
        event: dict[str, Any] = {"outcome": "done", "written_bytes": WRITTEN.num_bytes}
    except Exception as error:
        # Whatever happened becomes an event of the device, told to its owner in full and to the coordinator in short.
        logger.error("exchange failed: %s: %s", type(error).__name__, error, exc_info=not isinstance(error, TaskError))
        outcome = "declined" if isinstance(error, TaskDeclinedError) else "failed"
        event = {"outcome": outcome, "reason": public_reason(error)}
    events.write(event)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What signs and who is believed in a secure sum: the child's steps over real certificates."""

import ssl
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from bitfleet.v1 import fleet_pb2 as pb
from bnncore.errors import ExchangeRefusedError
from bnncore.secure.crypto import load_signer
from bnncore.secure.participant import Participant
from bnncore.secure.terms import Context, ExchangeRules, Signer
from edge_client.cli import main
from edge_client.exchange_child import answer_step
from edge_client.identity import Identity
from edge_client.state_dir import StateDir
from server.identity.authority import Authority, private_pem
from tests.edge_client.cohort import DEVICE, NEIGHBOURS, SHARES, again, secure_task

WEEK = timedelta(days=7)


class Fleet:
    """An authority, and the keys that it has certified."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority.open(folder)
        self.keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in (DEVICE, *NEIGHBOURS)}

    def certificate(self, name: str) -> bytes:
        return self.authority.certify(name, self.keys[name].public_key(), WEEK).public_bytes(Encoding.PEM)

    def signer(self, name: str) -> Signer:
        return load_signer(private_pem(self.keys[name]), self.certificate(name))


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path / "authority")


@pytest.fixture
def state(tmp_path: Path, fleet: Fleet) -> StateDir:
    """The state folder of an enrolled device."""
    state = StateDir(tmp_path / "state")
    with state.lock():
        state.settle_device_id(DEVICE)
    state.identity.keep_key(private_pem(fleet.keys[DEVICE]))
    identity = Identity(DEVICE, "h:1", "https://h:2", 0.0, 9e9)
    state.identity.keep(identity, fleet.certificate(DEVICE), fleet.authority.pem)
    state.exchange.root.mkdir()
    return state


def begin(state: StateDir, task: pb.Task) -> bytes:
    """Have the device make its keys."""
    state.exchange.begin_attempt(task.SerializeToString())
    answer_step(state, "keys")
    return state.exchange.payload("keys").read_bytes()


def keys_of(task: pb.Task, fleet: Fleet, signers: dict[str, Signer | None] | None = None) -> dict[str, bytes]:
    """The neighbours' keys, signed as the fleet does, or as is said."""
    context = Context(task.job_id, task.round_number, task.secure.attempt, task.model_digest)
    rules = ExchangeRules(task.secure.min_members, task.secure.threshold, task.secure.degree)
    signers = {**{name: fleet.signer(name) for name in NEIGHBOURS}, **(signers or {})}
    return {name: Participant.begin(context, rules, name, signers[name]).keys for name in NEIGHBOURS}


def ask_for_shares(state: StateDir, task: pb.Task, keys: dict[str, bytes]) -> bytes:
    order = pb.ExchangeOrder(task_id=task.task_id, attempt=task.secure.attempt, step=SHARES, num_members=len(keys) + 1)
    for name, message in keys.items():
        order.peers.add(device_id=name, keys=message)
    state.exchange.keep_order(order.SerializeToString())
    answer_step(state, "shares")
    return state.exchange.payload("shares").read_bytes()


def test_keys_are_signed_and_the_neighbours_are_remembered(
    state: StateDir, fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    task = secure_task()

    keys = begin(state, task)
    ask_for_shares(state, task, keys_of(task, fleet))

    assert ssl.PEM_cert_to_DER_cert(state.identity.credentials().certificate_pem.decode()) in keys
    assert set(state.peers.read()) == set(NEIGHBOURS)
    assert main(["peers", "--state", str(state.root)]) == 0
    told = capsys.readouterr().out
    assert all(name in told and peer.fingerprint in told for name, peer in state.peers.read().items())


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ("of another authority", "cat-1: its certificate is none of a device of this fleet"),
        ("of another device", "cat-1: its certificate is of another device"),
        ("unsigned", "cat-1"),
    ],
)
def test_keys_that_are_not_the_neighbours_own_are_refused(
    state: StateDir, fleet: Fleet, tmp_path: Path, lie: str, words: str
) -> None:
    task = secure_task()
    begin(state, task)
    signers: dict[str, Signer | None] = {
        "of another authority": Fleet(tmp_path / "other").signer("cat-1"),
        "of another device": fleet.signer("dog-1"),
        "unsigned": None,
    }

    with pytest.raises(ExchangeRefusedError, match=words):
        ask_for_shares(state, task, keys_of(task, fleet, {"cat-1": signers[lie]}))
    assert not state.exchange.payload("shares").exists()
    assert state.peers.read() == {}


def test_a_neighbours_other_key_is_refused_until_its_old_one_is_forgotten(
    state: StateDir, fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    task = secure_task()
    begin(state, task)
    ask_for_shares(state, task, keys_of(task, fleet))
    known = state.peers.read()
    fleet.keys["cat-1"] = ec.generate_private_key(ec.SECP256R1())  # certified by the authority, nevertheless

    second = again(task)
    begin(state, second)
    with pytest.raises(ExchangeRefusedError, match="cat-1"):
        ask_for_shares(state, second, keys_of(second, fleet))
    assert state.peers.read() == known
    assert main(["peers", "forget", "cat-1", "--state", str(state.root)]) == 0
    ask_for_shares(state, second, keys_of(second, fleet))

    assert state.peers.read()["cat-1"] != known["cat-1"]
    assert state.peers.read()["dog-1"] == known["dog-1"]
    assert main(["peers", "forget", "fox-1", "--state", str(state.root)]) == 3
    assert "fox-1" in capsys.readouterr().err


def test_who_leaves_its_fleet_forgets_whom_it_met(state: StateDir, fleet: Fleet) -> None:
    task = secure_task()
    begin(state, task)
    ask_for_shares(state, task, keys_of(task, fleet))

    assert main(["leave", "--offline", "--state", str(state.root)]) == 0

    assert state.peers.read() == {}


def test_a_step_counts_with_its_secrets_or_not_at_all(state: StateDir, fleet: Fleet) -> None:
    task = secure_task()
    first = begin(state, task)
    participant = state.exchange.attempt / "participant"
    before, keys = participant.read_bytes(), keys_of(task, fleet)
    shares = ask_for_shares(state, task, keys)
    participant.write_bytes(before)  # the power went after the payload was written, and before that counted

    assert state.exchange.participant()[0].made.keys() == {"keys"}
    assert ask_for_shares(state, task, keys) == shares
    assert begin(state, again(task)) != first

"""What secure aggregation reads: messages of devices and of the coordinator, and what a device keeps between steps."""

from __future__ import annotations

from functools import cache

import numpy as np

from bnncore.secure import Combiner, Participant, RingVector
from bnncore.secure.messages import Keys, Reveal, Shares
from tests.bnncore.secure.exchange_cases import SEED, SMALL, Exchange, names, random_vectors
from tests.fuzz.mutation import mutate_bytes
from tests.fuzz.target import Target

ONE = "device-00"


@cache
def exchange() -> Exchange:
    """One that went to its end, with certificates."""
    made = Exchange(SMALL, random_vectors(SMALL, names(4), np.random.default_rng(1)), secure=True)
    made.run()
    return made


@cache
def shares() -> dict[str, bytes]:
    """What its devices sent as SHARES."""
    return {name: exchange().shares_of(name) for name in names(4)}


@cache
def newcomer() -> bytes:
    """A device that has its keys and no more."""
    return Participant.begin(exchange().context, exchange().rules, "device-03", None).to_bytes()


def combiner_before(step: str) -> Combiner:
    """The coordinator of it before a step of the first device."""
    made = exchange()
    combiner = Combiner(made.context, made.rules, SMALL, made.keys_of, None, SEED)
    if step == "SHARES":
        return combiner
    for name in names(4):
        combiner.take_shares(name, shares()[name])
    combiner.start_masking()
    for name in names(4)[step == "MASKED" :]:
        combiner.take_masked(name, made.masked[name])
    if step == "REVEAL":
        combiner.start_reveal()
    return combiner


def read_keys(data: bytes) -> None:
    assert Keys.from_bytes(data).to_bytes() == data


def read_neighbours_keys(data: bytes) -> None:
    """As a device does that checks certificates."""
    made = exchange()
    device = Participant.from_bytes(newcomer())
    others = {name: made.keys_of[name] for name in names(4)[1:3]}
    device.share(others | {ONE: data}, 4, made.trust)


def read_shares(data: bytes) -> None:
    assert Shares.from_bytes(data).to_bytes() == data
    combiner_before("SHARES").take_shares(ONE, data)


def read_sealed(data: bytes) -> None:
    """What is sealed, at the device that it is for."""
    made = exchange()
    device = Participant.from_bytes(made.kept["device-01"])
    device.state.orders.pop("MASKED")
    sealed = made.combiner.sealed_for("device-01")
    device.mask(sealed | {ONE: data}, RingVector.zeros(SMALL))


def read_masked(data: bytes) -> None:
    combiner_before("MASKED").take_masked(ONE, data)


def read_reveal(data: bytes) -> None:
    assert Reveal.from_bytes(data).to_bytes() == data
    combiner_before("REVEAL").take_reveal(ONE, data)


def read_kept(data: bytes) -> None:
    """A device that goes on from what it kept, to the end of its exchange."""
    made = exchange()
    device = Participant.from_bytes(data)
    assert Participant.from_bytes(device.to_bytes()).to_bytes() == device.to_bytes()
    device.share(made.combiner.keys_for(ONE), 4, made.trust)
    vector = RingVector(SMALL, made.vectors[ONE].data.copy())
    device.mask(made.combiner.sealed_for(ONE), vector)
    device.reveal(made.combiner.survived_for(ONE))


def exchange_targets() -> dict[str, Target]:
    """Give the targets by name."""
    return {
        "exchange: KEYS": Target(read_keys, lambda: list(exchange().keys_of.values()), mutate_bytes),
        "exchange: a neighbour's KEYS": Target(read_neighbours_keys, lambda: [exchange().keys_of[ONE]], mutate_bytes),
        "exchange: SHARES": Target(read_shares, lambda: [shares()[ONE]], mutate_bytes),
        "exchange: sealed shares": Target(
            read_sealed, lambda: [exchange().combiner.sealed_for("device-01")[ONE]], mutate_bytes
        ),
        "exchange: MASKED": Target(read_masked, lambda: [exchange().masked[ONE]], mutate_bytes),
        "exchange: REVEAL": Target(read_reveal, lambda: [exchange().reveal_of(ONE)], mutate_bytes),
        "exchange's kept state": Target(read_kept, lambda: [exchange().kept[ONE]]),
    }

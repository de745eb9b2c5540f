"""A fleet with real certificates, and whole exchanges among its devices."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from numpy.typing import NDArray

from bnncore.secure import (
    Combiner,
    Context,
    ExchangeRules,
    Participant,
    RingLayout,
    RingSegment,
    RingVector,
    Signer,
    Trust,
)
from bnncore.secure.crypto import load_signer
from server.identity.authority import Authority, private_pem

CONTEXT = Context("digits", 3, 1, "sha256:" + "ab" * 32)
RULES = ExchangeRules()
ME = "device-02"
SEED = bytes(range(32))
SMALL = RingLayout((RingSegment("votes", 700, 5), RingSegment("scales", 3, 20)))


@cache
def authority(name: str = "fleet") -> Authority:
    with tempfile.TemporaryDirectory() as folder:
        return Authority.open(Path(folder, name))


def new_signer(device_id: str, by: Authority | None = None, lifetime: timedelta = timedelta(days=30)) -> Signer:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (by or authority()).certify(device_id, key.public_key(), lifetime)
    return load_signer(private_pem(key), certificate.public_bytes(Encoding.PEM))


signer = cache(new_signer)


def trust() -> Trust:
    return Trust(authority().pem)


def names(number: int) -> list[str]:
    return [f"device-{i:02}" for i in range(number)]


def fleet(number: int = 5, rules: ExchangeRules = RULES, context: Context = CONTEXT) -> dict[str, Participant]:
    return {name: Participant.begin(context, rules, name, signer(name)) for name in names(number)}


def keys_for_me(devices: dict[str, Participant]) -> dict[str, bytes]:
    return {name: device.keys for name, device in devices.items() if name != ME}


@dataclass
class Exchange:
    """An exchange step by step; each device is written and read again before each step, as after a power cut."""

    layout: RingLayout
    vectors: dict[str, RingVector]
    rules: ExchangeRules = field(default_factory=ExchangeRules)
    secure: bool = False
    context: Context = CONTEXT
    seed: bytes = SEED

    def __post_init__(self) -> None:
        self.trust = trust() if self.secure else None
        devices = {
            name: Participant.begin(self.context, self.rules, name, signer(name) if self.secure else None)
            for name in self.vectors
        }
        self.kept = {name: device.to_bytes() for name, device in devices.items()}
        self.keys_of = {name: device.keys for name, device in devices.items()}
        self.combiner = Combiner(self.context, self.rules, self.layout, self.keys_of, self.trust, self.seed)
        self.masked: dict[str, bytes] = {}

    def step(self, name: str, act: Callable[[Participant], bytes]) -> bytes:
        device = Participant.from_bytes(self.kept[name])
        message = act(device)
        self.kept[name] = device.to_bytes()
        return message

    def shares_of(self, name: str) -> bytes:
        keys, positions = self.combiner.keys_for(name), self.combiner.positions
        return self.step(
            name,
            lambda device: device.share(
                keys, len(self.vectors), self.trust, self.seed, {other: positions[other] for other in keys}
            ),
        )

    def masked_of(self, name: str) -> bytes:
        vector = RingVector(self.layout, self.vectors[name].data.copy())
        self.masked[name] = self.step(name, lambda device: device.mask(self.combiner.sealed_for(name), vector))
        return self.masked[name]

    def reveal_of(self, name: str) -> bytes:
        return self.step(name, lambda device: device.reveal(self.combiner.survived_for(name)))

    def share(self, lost: Collection[str] = ()) -> None:
        for name in self.combiner.members:
            if name not in lost:
                self.combiner.take_shares(name, self.shares_of(name))
        self.combiner.start_masking()

    def mask(self, lost: Collection[str] = ()) -> None:
        for name in sorted(self.combiner.masking - set(lost)):
            self.combiner.take_masked(name, self.masked_of(name))
        self.combiner.start_reveal()

    def reveal(self, lost: Collection[str] = ()) -> None:
        for name in sorted(self.combiner.survivors - set(lost)):
            self.combiner.take_reveal(name, self.reveal_of(name))

    def run(self, lost: Sequence[Collection[str]] = ((), (), ())) -> RingVector:
        self.share(lost[0])
        self.mask(lost[1])
        self.reveal(lost[2])
        return self.combiner.finish()


def random_vectors(layout: RingLayout, devices: Sequence[str], rng: np.random.Generator) -> dict[str, RingVector]:
    def random_data() -> NDArray[np.uint8]:
        return rng.integers(0, 256, layout.num_bytes, dtype=np.uint8)

    return {name: RingVector(layout, random_data()) for name in devices}


def plain_sum(exchange: Exchange) -> dict[str, NDArray[np.uint64]]:
    """The survivors' numbers added up by NumPy."""
    sums = {}
    for segment in exchange.layout.segments:
        numbers = [exchange.vectors[name].get(segment.name).view(np.uint64) for name in exchange.combiner.survivors]
        total = np.add.reduce(numbers)
        sums[segment.name] = total if segment.bits == 64 else total & np.uint64((1 << segment.bits) - 1)
    return sums


def assert_sum_is_plain(exchange: Exchange, total: RingVector) -> None:
    for name, wanted in plain_sum(exchange).items():
        assert np.array_equal(total.get(name).view(np.uint64), wanted)

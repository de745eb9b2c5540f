"""A device's side of an exchange: keys, shares, the masked vector, and what takes masks off others' sum.

What it guards: however the coordinator lies, no two of its orders together open this device's vector, or any other's.

- Each step is done once. Asked again with the same input it gives the same bytes; with other input it is refused.
- A share of a member's seed and one of its mask key are never both given. Since more than half of the holders must give
  one, no coordinator gets both kinds from honest devices; ``c`` holders that work for it help it only from
  ``2 t - h`` on (t = shares that open a secret, h = its holders).
- Shares are revealed only when enough of this device's holders are said to have survived to open a secret. A
  coordinator that tells devices different stories about who survived can then leave at most ``(h - t) / t`` of the
  members out of a sum that it opens: half of them at a threshold of 2/3. (Of the ``h`` stories each says that at most
  ``h - t`` were lost, and ``t`` of them must say so of a member whose mask key is to be had.)
- Keys are taken in the exchange that they were made for, from whoever a certificate of the fleet names, and whose key
  did not change since it was first seen.

Two things it cannot see to. A vector that it gave a REVEAL for must not be masked in another exchange
(``has_revealed``): of two sums that differ by one member, the difference is that member's vector. And it does not help
against a coordinator that enrols devices of its own to fill a cohort.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Self

from bnncore.errors import ExchangeRefusedError, PayloadError
from bnncore.secure.acquaintance import meet
from bnncore.secure.crypto import KEY_BYTES, NONCE_BYTES, KeyStream, derive, open_sealed, public_key, seal
from bnncore.secure.graph import is_complete, place_of
from bnncore.secure.masks import add_pair_mask, commit, masking_bound, own_mask_key, seal_key
from bnncore.secure.messages import Keys, Reveal, Sealed, Shares, masked_bytes
from bnncore.secure.participant_state import ParticipantState, Secrets
from bnncore.secure.ring import RingVector
from bnncore.secure.shamir import SHARE_BYTES, split
from bnncore.secure.terms import Context, ExchangeRules, Signer, Trust, exchange_digest

__all__ = ["Participant"]


class Participant:
    """A device in one exchange.

    Between any two steps it can be written and read again (``to_bytes``). That holds secrets: keep it for the owner's
    eyes alone, and on disk before a step's message is sent.

    Attributes:
      state: what is written.
    """

    def __init__(self, state: ParticipantState) -> None:
        self.state = state
        self._digest = exchange_digest(state.own.context, state.own.rules)

    @classmethod
    def begin(cls, context: Context, rules: ExchangeRules, device_id: str, signer: Signer | None) -> Self:
        """Enter an exchange with new keys.

        Args:
          context: of the task.
          rules: of the task.
          device_id: this device's name.
          signer: its certificate and key; None on a link without certificates.

        Raises:
          ExchangeRefusedError: the rules protect nobody.
          PayloadError: device_id is no name of a device.
        """
        problem = rules.problem()
        if problem is not None:
            raise ExchangeRefusedError(f"secure aggregation refused: {problem}")
        hidden = Secrets(*(secrets.token_bytes(KEY_BYTES) for _ in range(4)))
        keys = Keys(context, rules, device_id, public_key(hidden.channel), public_key(hidden.mask))
        if signer is not None:
            keys = replace(keys, certificate=signer.certificate_der)
            keys = replace(keys, signature=signer.sign(keys.signed_bytes()))
        return cls(ParticipantState(keys.to_bytes(), hidden))

    @property
    def keys(self) -> bytes:
        """The message KEYS."""
        return self.state.keys

    @property
    def identities(self) -> dict[str, bytes]:
        """The public keys of the neighbours' certificates, by name: what to pin."""
        return {name: peer.identity for name, peer in self.state.peers.items() if peer.identity}

    def share(
        self,
        keys_of: Mapping[str, bytes],
        num_members: int,
        trust: Trust | None,
        graph_seed: bytes = b"",
        positions: Mapping[str, int] | None = None,
    ) -> bytes:
        """Give the message SHARES: this device's secrets in parts, each part sealed for one neighbour.

        Args:
          keys_of: the neighbours' messages KEYS, by name.
          num_members: members of the exchange, this device included.
          trust: whom to believe; None on a link without certificates, where anybody is believed.
          graph_seed: of the members' order, when not all are neighbours.
          positions: then, each neighbour's place among the members' sorted names, from 0.

        Raises:
          ExchangeRefusedError: the members are fewer than promised, not who they should be, or others than before.
        """
        state, me = self.state, self.state.own.device_id
        complete = is_complete(num_members, state.own.rules.degree)
        graph_seed, positions = (b"", {}) if complete else (graph_seed, positions or {})
        self._check_members(set(keys_of), num_members, complete, graph_seed, positions)
        peers = meet(state.own.context, state.own.rules, me, state.keys, keys_of, trust)
        names = sorted(peers)
        order = _digest(
            graph_seed, num_members.to_bytes(4, "little"),
            *(part for name in names for part in (name.encode(), keys_of[name], b"%d" % positions.get(name, 0))),
        )  # fmt: skip
        self._once("SHARES", order)
        state.peers, state.complete = peers, complete
        holders = sorted([*names, me])
        needed = state.own.rules.shares_needed(len(holders))
        draw = KeyStream(derive(state.secrets.dice, "polynomials", order))
        places = range(1, len(holders) + 1)
        split_seed, split_mask = (
            split(secret, needed, places, lambda size: draw.take(size).tobytes())
            for secret in (state.secrets.seed, state.secrets.mask)
        )
        parts = {holder: split_seed[i] + split_mask[i] for i, holder in enumerate(holders)}
        state.held.setdefault(me, parts.pop(me))
        sealed = {name: self._seal(name, part, order) for name, part in parts.items()}
        return Shares(self._digest, commit(state.secrets.seed, self._digest), sealed).to_bytes()

    def mask(self, sealed_by: Mapping[str, bytes], vector: RingVector) -> bytes:
        """Give the message MASKED, and leave the masked vector in ``vector``.

        Args:
          sealed_by: the shares that neighbours sealed for this device, by name: of all that sent theirs.
          vector: what this device adds to the sum.

        Raises:
          ExchangeRefusedError: those that sent shares are too few or strangers, shares cannot be opened, the vector or
            the members are others than before, or it is not the time. The vector is unchanged then.
        """
        self._need("SHARES", before="MASKED")
        state, me = self.state, self.state.own.device_id
        if not sealed_by.keys() <= state.peers.keys():
            raise self._refusal(f"unknown members sent shares: {_some(sealed_by.keys() - state.peers.keys())}")
        self._check_number("members sent shares", len(sealed_by) + 1)
        names = sorted(sealed_by)
        held = {name: self._open(name, sealed_by[name]) for name in names}
        self._once("MASKED", _digest(vector.data.data, *(part for n in names for part in (n.encode(), sealed_by[n]))))
        state.masking = tuple(names)
        state.held |= held
        vector.add_mask(own_mask_key(state.secrets.seed, self._digest), negative=False)
        bound = masking_bound([*names, me], complete=state.complete)
        for name in names:
            keys = (state.secrets.mask, state.peers[name].mask_key)
            add_pair_mask(vector, *keys, self._digest, bound, mine=me, other=name, undo=False)
        return masked_bytes(self._digest, vector.data.data)

    def reveal(self, survived: Mapping[str, bool]) -> bytes:
        """Give the message REVEAL: of each survivor a share of its seed, of each lost member one of its mask key.

        Args:
          survived: of each member that sent shares, this device included, whether its masked vector came.

        Raises:
          ExchangeRefusedError: it names others than those this device masked with, says that this device was lost,
            leaves too few survivors, or says otherwise than before.
        """
        self._need("MASKED", before="REVEAL")
        state = self.state
        members = {*state.masking, state.own.device_id}
        if survived.keys() != members:
            raise self._refusal(
                f"asked to reveal shares of {_some(survived.keys() - members)} and not of "
                f"{_some(members - survived.keys())}: they must be those of all members that it masked with"
            )
        if not survived[state.own.device_id]:
            raise self._refusal("told that this device was lost, which has sent its masked update: both would open it")
        self._check_number("members survived", sum(survived.values()))
        self._once("REVEAL", _digest(*(b"%d%s" % (survived[name], name.encode()) for name in sorted(members))))
        shares = {}
        for name, came in survived.items():
            held = state.held[name]
            shares[name] = (came, held[:SHARE_BYTES] if came else held[SHARE_BYTES:])
        return Reveal(self._digest, shares).to_bytes()

    @property
    def has_revealed(self) -> bool:
        """Whether this device helped to open a sum, so that its vector has served."""
        return "REVEAL" in self.state.orders

    def to_bytes(self) -> bytes:
        """Write where this device is in the exchange, its secrets included."""
        return self.state.to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Go on from where a device was.

        Raises:
          PayloadError: the bytes are damaged.
        """
        return cls(ParticipantState.from_bytes(data))

    def _check_members(
        self, names: set[str], num_members: int, complete: bool, graph_seed: bytes, positions: Mapping[str, int]
    ) -> None:
        me, rules = self.state.own.device_id, self.state.own.rules
        if num_members < rules.min_members:
            raise self._refusal(f"the exchange has {num_members} members; {rules.min_members} were promised")
        if me in names:
            raise self._refusal("named as its own neighbour")
        if complete:
            if len(names) + 1 != num_members:
                raise self._refusal(
                    f"{num_members} members were announced, with keys of {len(names)} others: each must be named once"
                )
            return
        if positions.keys() != names or len(set(positions.values())) != len(names) or len(graph_seed) != 32:
            raise self._refusal(
                "each neighbour needs a place of its own in the graph, and the graph a seed of 32 bytes"
            )
        here = place_of(positions.values(), num_members, rules.degree, graph_seed)
        places = dict(positions) | {me: -1 if here is None else here}
        if here is None or sorted(places, key=lambda name: places[name]) != sorted(places):
            raise self._refusal("the neighbours are not those that the graph of masks gives this device")

    def _check_number(self, what: str, number: int) -> None:
        least = self.state.own.rules.shares_needed(len(self.state.peers) + 1)
        if self.state.complete:
            least = max(least, self.state.own.rules.min_members)
        if number < least:
            raise self._refusal(f"only {number} {what}, this device included; {least} are needed")

    def _once(self, step: str, order: bytes) -> None:
        if self.state.orders.setdefault(step, order) != order:
            raise self._refusal(f"asked for {step} a second time, with other input than the first time")

    def _need(self, step: str, *, before: str) -> None:
        if step not in self.state.orders:
            raise self._refusal(f"asked for {before} before {step}")

    def _seal(self, name: str, part: bytes, order: bytes) -> Sealed:
        key = seal_key(
            self.state.secrets.channel, self.state.peers[name].channel_key, self._digest, self.state.own.device_id, name
        )
        # Another order is refused; but were its record lost, the same key would seal other shares, and never may with
        # the same nonce.
        nonce = derive(self.state.secrets.dice, "nonce", order, name.encode())[:NONCE_BYTES]
        return Sealed(nonce, seal(key, nonce, part))

    def _open(self, name: str, data: bytes) -> bytes:
        key = seal_key(
            self.state.secrets.channel, self.state.peers[name].channel_key, self._digest, name, self.state.own.device_id
        )
        try:
            sealed = Sealed.from_bytes(data)
            part = open_sealed(key, sealed.nonce, sealed.data)
        except PayloadError as error:
            raise self._refusal(f"the shares said to be {name}'s: {error}") from error
        return part

    def _refusal(self, what: str) -> ExchangeRefusedError:
        return ExchangeRefusedError(f"secure aggregation refused ({self.state.own.context}): {what}")


def _digest(*parts: bytes | memoryview) -> bytes:
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.digest()


def _some(names: set[str]) -> str:
    shown = sorted(names)[:5]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if shown else "nobody"

"""The coordinator's side of an exchange: it checks what members send, adds it up, and takes the masks off the sum.

It knows three sets, each a part of the one before: the *members*, whose KEYS came; the *masking* ones, whose SHARES
came before ``start_masking``; the *survivors*, whose MASKED came before ``start_reveal``. It holds no more than one
vector, however many members there are. A coordinator that starts again makes a new one and hands it the stored messages
in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

from bnncore.errors import ConfigurationError, ExchangeFailedError, PayloadError
from bnncore.secure.acquaintance import check_keys
from bnncore.secure.crypto import public_key
from bnncore.secure.graph import is_complete, neighbours
from bnncore.secure.masks import add_pair_mask, commit, masking_bound, own_mask_key
from bnncore.secure.messages import Keys, Reveal, Shares, masked_data
from bnncore.secure.opening import Check, Opening
from bnncore.secure.ring import RingLayout, RingVector
from bnncore.secure.terms import Context, ExchangeRules, Trust, exchange_digest

__all__ = ["Combiner"]


class Combiner:
    """One exchange, at the coordinator.

    Args:
      context: which exchange it is.
      rules: what it promises to members.
      layout: of the vectors.
      keys_of: the members' messages KEYS, by name.
      trust: whose certificates KEYS are signed with; None on a link without certificates.
      graph_seed: 32 random bytes that decide the graph of masks, when the rules name a degree.

    Raises:
      ConfigurationError: the rules protect nobody, or a seed is missing.
      ExchangeFailedError: there are fewer members than promised.
      PayloadError: a member's KEYS are not what they must be.
    """

    def __init__(
        self,
        context: Context,
        rules: ExchangeRules,
        layout: RingLayout,
        keys_of: Mapping[str, bytes],
        trust: Trust | None = None,
        graph_seed: bytes = b"",
    ) -> None:
        problem = rules.problem()
        if problem is not None:
            raise ConfigurationError(f"secure aggregation: {problem}")
        self._context = context
        self._rules = rules
        self._digest = exchange_digest(context, rules)
        self.graph_seed = graph_seed
        self.members = tuple(sorted(keys_of))
        self._complete = is_complete(len(self.members), rules.degree)
        if not self._complete and len(graph_seed) != 32:
            raise ConfigurationError(f"the graph of masks needs a seed of 32 bytes, got {len(graph_seed)}")
        self._require("members", len(self.members), rules.min_members)
        self._messages = dict(keys_of)
        self._keys: dict[str, Keys] = {}
        for name in self.members:
            try:
                self._keys[name], _ = check_keys(context, rules, name, keys_of[name], trust)
            except PayloadError as error:
                raise PayloadError(f"the keys of {name}: {error}") from error
        self._shares: dict[str, Shares] = {}
        self._masking: frozenset[str] | None = None
        self._survivors: frozenset[str] | None = None
        self._came: set[str] = set()
        self._revealed: set[str] = set()
        self._sum = RingVector.zeros(layout)
        self._openings: dict[str, Opening] = {}
        self._finished = False

    @property
    def masking(self) -> frozenset[str]:
        """Members whose SHARES count, once masking began."""
        return frozenset() if self._masking is None else self._masking

    @property
    def survivors(self) -> frozenset[str]:
        """Members whose vectors are in the sum, once revealing began."""
        return frozenset() if self._survivors is None else self._survivors

    @property
    def missing(self) -> frozenset[str]:
        """Those that the step that goes on still waits for."""
        if self._masking is None:
            return frozenset(self.members) - self._shares.keys()
        if self._survivors is None:
            return self._masking - self._came
        return self._survivors - self._revealed

    @property
    def wrong_shares(self) -> frozenset[str]:
        """Survivors that revealed shares which are none, as far as secrets were opened."""
        return frozenset(name for opening in self._openings.values() for name in opening.wrong)

    @cached_property
    def positions(self) -> Mapping[str, int]:
        """Each member's place among their sorted names, from 0."""
        return {name: position for position, name in enumerate(self.members)}

    @cached_property
    def _neighbours(self) -> Mapping[str, tuple[str, ...]]:
        graph = neighbours(len(self.members), self._rules.degree, self.graph_seed)
        return {
            name: tuple(self.members[other] for other in around)
            for name, around in zip(self.members, graph, strict=True)
        }

    def neighbours_of(self, device_id: str) -> tuple[str, ...]:
        """Give the members that one shares masks with, by name."""
        return self._neighbours[device_id]

    def keys_for(self, device_id: str) -> dict[str, bytes]:
        """Give what a member needs for SHARES: its neighbours' KEYS."""
        return {name: self._messages[name] for name in self._neighbours[device_id]}

    def take_shares(self, device_id: str, payload: bytes) -> None:
        """Take a member's SHARES.

        Raises:
          PayloadError: they are malformed or not those that were asked for; nothing was taken.
        """
        self._check_turn("SHARES", device_id, self.members, self._shares, over=self._masking is not None)
        shares = Shares.from_bytes(payload)
        self._check_digest("SHARES", shares.digest)
        if set(shares.sealed) != set(self._neighbours[device_id]):
            raise PayloadError("SHARES: shares are sealed for the neighbours, each and no other")
        self._shares[device_id] = shares

    def start_masking(self) -> None:
        """End the time of SHARES: who sent none is no part of the exchange any more.

        Raises:
          ExchangeFailedError: too few sent theirs.
        """
        if self._masking is not None:
            return
        masking = frozenset(self._shares)
        self._require("members sent SHARES", len(masking), self._rules.min_members)
        self._require_holders(masking, masking, "sent SHARES")
        self._masking = masking

    def sealed_for(self, device_id: str) -> dict[str, bytes]:
        """Give what a member needs for MASKED: the shares that its neighbours sealed for it, by sender."""
        around = self.masking.intersection(self._neighbours[device_id])
        return {name: self._shares[name].sealed[device_id].to_bytes() for name in sorted(around)}

    def take_masked(self, device_id: str, payload: bytes) -> None:
        """Add a member's masked vector to the sum.

        Raises:
          PayloadError: it is malformed or was not asked for; nothing was added.
        """
        self._check_turn("MASKED", device_id, self.masking, self._came, over=self._survivors is not None)
        self._sum.add(masked_data(self._digest, payload))
        self._came.add(device_id)

    def start_reveal(self) -> None:
        """End the time of MASKED: who sent none is lost, and no vector is added any more.

        Raises:
          ExchangeFailedError: masking has not begun, or too few survived.
        """
        if self._survivors is not None:
            return
        survivors = frozenset(self._came)
        self._require("members sent MASKED", len(survivors), self._rules.min_members)
        lost = self.masking - survivors
        concerned = survivors | {name for name in lost if survivors.intersection(self._neighbours[name])}
        self._require_holders(concerned, survivors, "sent MASKED")
        for name in concerned:
            keys, shares = self._keys[name], self._shares[name]
            holders = sorted([*self._neighbours[name], name])
            self._openings[name] = Opening(
                {holder: place for place, holder in enumerate(holders, start=1)},
                self._rules.shares_needed(len(holders)),
                self._is_seed(shares.commitment) if name in survivors else self._is_mask_key(keys.mask_key),
            )
        self._survivors = survivors

    def survived_for(self, device_id: str) -> dict[str, bool]:
        """Give what a survivor needs for REVEAL: of its masking neighbours and itself, who survived."""
        around = self.masking.intersection([*self._neighbours[device_id], device_id])
        return {name: name in self.survivors for name in sorted(around)}

    def take_reveal(self, device_id: str, payload: bytes) -> None:
        """Take a survivor's shares of what is to be opened.

        Raises:
          PayloadError: they are malformed or not those that were asked for; nothing was taken.
        """
        self._check_turn("REVEAL", device_id, self.survivors, self._revealed, over=self._finished)
        reveal = Reveal.from_bytes(payload)
        self._check_digest("REVEAL", reveal.digest)
        if {name: survived for name, (survived, _) in reveal.shares.items()} != self.survived_for(device_id):
            raise PayloadError("REVEAL: shares are of the members that were named, of the kinds that were asked for")
        for name, (_, share) in reveal.shares.items():
            if name in self._openings:
                self._openings[name].add(device_id, share)
        self._revealed.add(device_id)

    @property
    def is_complete(self) -> bool:
        """Whether enough shares came of every secret that is to be opened."""
        return self._survivors is not None and all(opening.is_ready for opening in self._openings.values())

    def finish(self) -> RingVector:
        """Open the secrets and take the masks off: the sum over the survivors, exact. Memory: that of the sum itself.

        When it fails, more shares may be taken, and then it may be done again.

        Raises:
          ExchangeFailedError: shares of a secret are missing, or too many are wrong.
        """
        if self._finished:
            return self._sum
        if not self.is_complete:
            short = [name for name, opening in self._openings.items() if not opening.is_ready]
            raise ExchangeFailedError(
                f"secure aggregation failed ({self._context}): too few shares of the secrets of {_some(short)}; "
                f"{_some(self.missing)} sent none"
            )
        excluded: set[str] = set()  # who lied once is not asked again
        unopened = []
        for name in sorted(self._openings):
            opening = self._openings[name]
            if opening.open(excluded):
                excluded |= opening.wrong
            else:
                unopened.append(name)
        if unopened:
            raise ExchangeFailedError(
                f"secure aggregation failed ({self._context}): the secrets of {_some(unopened)} cannot be opened, "
                f"too many of their shares are wrong; devices known to have sent such: {_some(self.wrong_shares)}"
            )
        self._unmask()
        self._finished = True
        return self._sum

    def _unmask(self) -> None:
        bound = masking_bound(self.masking, complete=self._complete)
        for name, opening in self._openings.items():
            if name in self.survivors:
                self._sum.add_mask(own_mask_key(opening.secret, self._digest), negative=True)
                continue
            for other in self.survivors.intersection(self._neighbours[name]):
                keys = (opening.secret, self._keys[other].mask_key)
                add_pair_mask(self._sum, *keys, self._digest, bound, mine=other, other=name, undo=True)

    def _is_seed(self, commitment: bytes) -> Check:
        return lambda seed: commit(seed, self._digest) == commitment

    def _is_mask_key(self, public: bytes) -> Check:
        return lambda private: public_key(private) == public

    def _check_turn(
        self, step: str, device_id: str, asked: Iterable[str], answered: Iterable[str], *, over: bool
    ) -> None:
        if device_id not in asked or over:
            raise PayloadError(f"{step}: not wanted of {device_id} (any more)")
        if device_id in answered:
            raise PayloadError(f"{step}: {device_id} has answered before")

    def _check_digest(self, step: str, digest: bytes) -> None:
        if digest != self._digest:
            raise PayloadError(f"{step}: the message is of another exchange than {self._context}")

    def _require(self, what: str, number: int, least: int) -> None:
        if number < least:
            raise ExchangeFailedError(
                f"secure aggregation failed ({self._context}): only {number} {what}, {least} are needed"
            )

    def _require_holders(self, names: Iterable[str], present: frozenset[str], what: str) -> None:
        for name in sorted(names):
            holders = (*self._neighbours[name], name)
            here = len(present.intersection(holders))
            needed = self._rules.shares_needed(len(holders))
            self._require(f"of the {len(holders)} devices that hold shares of {name}'s secrets {what}", here, needed)


def _some(names: Iterable[str]) -> str:
    shown = sorted(names)
    more = f" and {len(shown) - 5} more" if len(shown) > 5 else ""
    return ", ".join(shown[:5]) + more if shown else "nobody"

"""Updates at any replica: how its intake finds their rounds, and what the lead answers to the others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from server.coordinator import Coordinator
from server.coordinator.desk import PlayedRound
from server.coordinator.messages import SubmitAnswer, UpdateHeader
from server.coordinator.open_round import OpenRound
from server.coordinator.partial_sums import Part, PartialSum
from server.errors import NotReadyError, ServerError
from server.replicas.bus import Body, Bus
from server.replicas.distant_round import JUDGE, OFFER, REFUSE, DistantRounds
from server.replicas.partials import Partials
from server.replicas.wire import from_json, to_json
from server.storage.base import VersionRecord

_log = logging.getLogger(__name__)

_GIVE, _DROP = "partial.give", "partial.drop"
_GIVE_S = 5.0
"""How long the lead waits for others' sums before it folds their updates itself."""


class Updates:
    """Takes updates in for whichever replica leads, and as the lead for all; see ``Rounds`` and ``PartialSums``.

    Args:
      coordinator: of this replica.
      bus: to the others.
      is_alive: says whether another replica is there.
    """

    def __init__(self, coordinator: Coordinator, bus: Bus, is_alive: Callable[[str], bool]) -> None:
        self._bus = bus
        self._is_alive = is_alive
        self._desk = coordinator.desk
        self.partials = Partials(coordinator.disk)
        self._distant = DistantRounds(bus, coordinator.disk, self.partials)
        self._tidying: asyncio.Task[None] | None = None
        bus.answer(JUDGE, self._answer_judge)
        bus.answer(OFFER, self._answer_offer)
        bus.answer(REFUSE, self._answer_refuse)
        bus.answer(_GIVE, self._answer_give)
        bus.on(_DROP, self._on_drop)
        bus.on_connect(self._tidy_up)
        coordinator.rounds = self
        coordinator.jobs.gather_from(self)

    @property
    def _leads(self) -> bool:
        return self._bus.find_lead() == self._bus.id

    # Of this replica's intake

    async def judge(self, header: UpdateHeader) -> SubmitAnswer | OpenRound:
        """See ``Rounds``."""
        return await (self._desk if self._leads else self._distant).judge(header)

    # Of the rounds that this replica plays

    def is_there(self, replica: str) -> bool:
        """See ``PartialSums``."""
        return replica == self._bus.id or self._is_alive(replica)

    async def gather(self, base: VersionRecord, replicas: Mapping[str, Mapping[str, Part]]) -> Sequence[PartialSum]:
        """See ``PartialSums``."""
        asked = [self._ask_for(base, name, len(parts)) for name, parts in replicas.items() if self.is_there(name)]
        return [found for found in await asyncio.gather(*asked) if found is not None]

    async def _ask_for(self, base: VersionRecord, replica: str, num_updates: int) -> PartialSum | None:
        body: Body = {"base": to_json(base), "num_updates": num_updates}
        try:
            told = await self._bus.ask(replica, _GIVE, body, timeout_s=_GIVE_S)
        except ServerError as error:
            _log.warning(
                "event=partial_sum_missing job=%s round=%d replica=%s reason=%r",
                base.job_id, base.version + 1, replica, str(error),
            )  # fmt: skip
            return None
        if "digest" not in told:
            return None
        return PartialSum(told["digest"], {device_id: Part(*part) for device_id, part in told["parts"].items()})

    def drop(self, job_id: str, round_number: int | None = None) -> None:
        """See ``PartialSums``."""
        self.partials.drop(job_id, round_number)
        self._bus.tell(None, _DROP, {"job_id": job_id, "round_number": round_number})

    # What others ask and tell

    async def _answer_judge(self, sender: str, body: Body) -> Body:
        verdict = await self._judge_as_lead(body)
        return {"answer": to_json(verdict)} if isinstance(verdict, SubmitAnswer) else {"base": to_json(verdict.base)}

    async def _answer_offer(self, sender: str, body: Body) -> Body:
        verdict = await self._judge_as_lead(body)
        if isinstance(verdict, SubmitAnswer):
            answer = verdict
        else:
            verdict.count(up=body["up_bytes"])
            answer = await self._desk.offer_kept(verdict, keeper=sender)
        return {"answer": to_json(answer)}  # a payload that nobody names then is the sweeper's

    async def _answer_refuse(self, sender: str, body: Body) -> Body:
        verdict = await self._judge_as_lead(body)
        if not isinstance(verdict, SubmitAnswer):
            verdict.count(up=body["up_bytes"])
            verdict = await verdict.refuse(body["reason"])
        return {"answer": to_json(verdict)}

    async def _judge_as_lead(self, body: Body) -> SubmitAnswer | PlayedRound:
        if not self._leads:
            raise NotReadyError(f"replica {self._bus.id} does not lead; try again in a moment")
        return await self._desk.judge(from_json(UpdateHeader, body["header"]))

    async def _answer_give(self, sender: str, body: Body) -> Body:
        found = await self.partials.give(from_json(VersionRecord, body["base"]), body["num_updates"])
        return {} if found is None else {"digest": found.digest, "parts": found.parts}

    def _on_drop(self, sender: str, body: Body) -> None:
        self.partials.drop(body["job_id"], body["round_number"])

    def _tidy_up(self) -> None:
        """Look for sums of rounds that ended while this replica heard nothing."""
        if len(self.partials):
            self._tidying = asyncio.create_task(self._drop_ended())

    async def _drop_ended(self) -> None:
        try:
            await self.partials.drop_ended()
        except Exception as error:  # noqa: BLE001 - they only take memory until their jobs' next rounds
            _log.warning("event=partial_sums_not_checked reason=%r", str(error))

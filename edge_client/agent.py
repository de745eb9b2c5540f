"""The agent: keeps one stream to the coordinator for as long as the device lives, and a worker beside it.

::

    SURVEY -> CONNECTING -> WELCOMED -> CONNECTING -> ...
                 ^  waits with backoff  |
                 +----------------------+

The survey looks at the data before anything is sent. Welcomed, the agent sends heartbeats and hands tasks to the
worker, which goes on when the stream breaks. A signal ends it: the trainer first, then a word to the coordinator.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
from dataclasses import replace
from typing import Any

from bitfleet.v1 import fleet_pb2 as wire
from bnncore.errors import UnreachableError
from bnncore.supervision import ServiceManager
from edge_client.backoff import backoff
from edge_client.budgets import Budgets
from edge_client.conditions import Surroundings
from edge_client.courier import Courier
from edge_client.daily_use import DailyUse
from edge_client.errors import LinkError, StateFolderError, TaskDeclinedError, one_line
from edge_client.link import Link
from edge_client.machine import usable_cores
from edge_client.policy import Policy, read_policy
from edge_client.privacy_account import PrivacyAccount
from edge_client.pss import tree_pss_bytes
from edge_client.renewal import Renewal
from edge_client.settings import ClientSettings
from edge_client.state_dir import StateDir
from edge_client.survey import DataWatch, data_summary, survey_device
from edge_client.task_rules import TaskRules, is_name, memory_limit
from edge_client.transport import PROTOCOL_MAX, PROTOCOL_MIN, FleetStream, Transport
from edge_client.worker import Worker

__all__ = ["Agent", "run_agent"]

logger = logging.getLogger(__name__)

SETTLED_S = 5.0
"""A stream that lived shorter than this does not make the next wait short: two agents of one name would take the
stream from each other without a pause."""

FAREWELL_TIMEOUT_S = 2.0
"""Longest wait for the coordinator to hear that this device leaves."""

TALK_NOTED_S = 3600.0
"""Messages without a payload are counted, and stand in the outbox ledger so long after the first of them at latest."""

REFUSAL_PAUSE_S = 1.0
"""Between two orders of which the coordinator is told that they cannot be followed: each costs a line of the ledger."""

BUDGET_CHECK_S = 600.0
"""Between looks at the date, when nothing more may come from the coordinator today."""


class Agent:
    """One device's connection to one coordinator.

    Args:
      settings: the effective settings.
      state: the state folder, locked by this process.
      survey: what ``survey_device`` found.
      policy: the owner's rules.

    Attributes:
      device_id: the device's lasting name.

    Raises:
      StateFolderError: the folder or the certificate in it belongs to another device.
    """

    def __init__(self, settings: ClientSettings, state: StateDir, survey: dict[str, Any], policy: Policy) -> None:
        self.device_id = device_id = state.settle_device_id(settings.device_id)
        self._hello = wire.Hello(
            protocol_min=PROTOCOL_MIN,
            protocol_max=PROTOCOL_MAX,
            client_version=survey["version"],
            device_id=device_id,
            data=data_summary(survey),
            capabilities=wire.Capabilities(
                isa=survey["isa"],
                threads=settings.threads,
                memory_bytes=min(filter(None, (settings.memory_budget, policy.max_memory)), default=0),
                machine=survey["machine"],
            ),
        )
        self._settings = settings
        self._is_leaving = False
        self._max_retries = settings.max_retries
        identity = None if settings.insecure else state.identity.read()
        if identity is not None and identity.device_id != device_id:
            raise StateFolderError(
                f"the certificate in {state.identity.root} is of device {identity.device_id!r}, this is {device_id!r}; "
                "enrol again with: bitfleet-client enroll"
            )
        self._transport = Transport(settings.server, None if identity is None else state.identity.credentials())
        self._renewal = None if identity is None else Renewal(state, self._transport)
        self._link = Link(state.outbox)
        self._outbox = state.outbox
        self._talk_noted_at = -math.inf
        self._refused_at = -math.inf
        self._use = DailyUse(state.daily_use_file, policy)
        self._surroundings = Surroundings(settings, Budgets.of(settings, policy))
        courier = Courier(self._transport, self._link, state.outbox, device_id, self._use)
        account = PrivacyAccount(state.outbox, policy)
        rules = TaskRules(
            policy, self._use, memory_limit(settings.memory_budget, policy), account, has_identity=identity is not None
        )
        self._worker = Worker(settings, state, device_id, courier, self._link, rules, self._surroundings)
        self._watch = None
        if settings.watch > 0:
            self._watch = DataWatch(settings, survey, lambda: self._worker.activity.is_idle, self._announce)
        self._has_news = False

    async def run(self) -> None:
        """Work until cancelled. Cancelled in the middle of a task, it tells the coordinator that none will come.

        Raises:
          ProtocolError: the coordinator refuses this client.
          IdentityRefusedError: the coordinator does not take this device (any more).
          UnreachableError: ``max_retries`` attempts in a row failed.
        """
        worker = asyncio.create_task(self._worker.run())
        keeper = asyncio.create_task(self._keep_connected())
        renewal = None if self._renewal is None else asyncio.create_task(self._renewal.run())
        watch = None if self._watch is None else asyncio.create_task(self._watch.run())
        try:
            await asyncio.wait(
                {task for task in (worker, keeper, renewal, watch) if task}, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for helper in (renewal, watch):
                if helper is not None:
                    await _end(helper)
            await _end(worker)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FAREWELL_TIMEOUT_S):
                    await self._say_goodbye(self._worker.leave())
            await _end(keeper)
            await self._transport.close()
            self._note_talk()
        for task in (renewal, watch, keeper, worker):
            if task is not None and not task.cancelled():
                task.result()

    async def _keep_connected(self) -> None:
        failures = 0
        delays = backoff()
        while True:
            welcomed_at = math.inf
            await self._wait_for_budget()
            try:
                self._hello.conditions.CopyFrom(self._surroundings.read())
                self._has_news = False
                async with self._transport.connect(self._hello) as stream:
                    failures = 0
                    welcomed_at = asyncio.get_running_loop().time()
                    if self._has_news:  # it was said hello to with what the data were before
                        continue
                    await self._serve(stream)
            except LinkError as error:
                if self._is_leaving:
                    return
                if self._has_news:
                    continue
                if asyncio.get_running_loop().time() - welcomed_at > SETTLED_S:
                    delays = backoff()
                delay_s = next(delays)
                server = self._transport.address
                found = "" if self._renewal is None else await self._renewal.look_into(failures + 1)
                if failures == self._max_retries:
                    raise UnreachableError(
                        f"the coordinator at {server} must answer within {failures + 1} attempts, the last one failed: "
                        f"{error}. {found or 'Is it running, and is --server right?'}"
                    ) from error
                failures += 1
                self._note_talk_in_time()
                logger.warning("no link to server=%s, next try in %.1f s error=%s", server, delay_s, error)
                await asyncio.sleep(delay_s)

    def _announce(self, data: wire.DataSummary) -> None:
        """Tell the coordinator what the data are now: a stream begins with that, so by a new one."""
        self._hello.data.CopyFrom(data)
        self._has_news = True
        self._link.cut()

    async def _wait_for_budget(self) -> None:
        """Stay away from the coordinator on a day on which nothing more may come from it."""
        while self._use.is_down_spent:
            logger.warning("what may be downloaded today is spent; waiting for tomorrow")
            self._use.save()
            await asyncio.sleep(BUDGET_CHECK_S)

    async def _serve(self, stream: FleetStream) -> None:
        """Live on one stream until it breaks."""
        version = one_line(stream.welcome.server_version)
        logger.info("welcomed server=%s server_version=%s", self._transport.address, version)
        self._worker.forget_waiting()
        self._link.up(stream)
        heart = asyncio.create_task(self._beat(stream))
        try:
            while True:
                answer = await stream.receive()
                self._count(answer)
                match answer.WhichOneof("event"):
                    case "task":
                        self._worker.offer(answer.task)
                    case "cancel":
                        self._worker.cancel(answer.cancel.task_id, one_line(answer.cancel.reason))
                    case "exchange":
                        await self._order(answer.exchange)
                    case other:
                        logger.warning("unknown event from the coordinator event=%s; is this client too old?", other)
        finally:
            self._link.down()
            await _end(heart)

    async def _order(self, order: wire.ExchangeOrder) -> None:
        """Hand an order on; the coordinator is told where this device cannot follow it."""
        refusal = self._worker.order(order)
        now = asyncio.get_running_loop().time()
        if refusal and is_name(order.task_id) and now - self._refused_at > REFUSAL_PAUSE_S:
            self._refused_at = now
            logger.warning("order of a secure sum refused task=%s reason=%s", order.task_id, refusal)
            await self._link.report(
                wire.TaskReport(task_id=order.task_id, outcome=wire.TASK_OUTCOME_DECLINED, reason=refusal)
            )

    def _count(self, event: wire.ConnectResponse) -> None:
        try:
            self._use.take_down(event.ByteSize())
        except TaskDeclinedError as error:
            raise LinkError(str(error)) from error

    async def _beat(self, stream: FleetStream) -> None:
        interval_s = stream.heartbeat_interval_s
        while True:
            now = self._worker.activity
            heartbeat = wire.Heartbeat(
                state=now.told_state,
                task_id=now.task_id,
                step=now.step,
                total_steps=now.total_steps,
                pss_bytes=tree_pss_bytes(os.getpid()),
                conditions=self._surroundings.read(),
                temperature_c=self._surroundings.temperature(),
            )
            try:
                await stream.send(wire.ConnectRequest(heartbeat=heartbeat))
            except LinkError as error:
                if self._is_leaving:
                    return
                logger.warning("heartbeat lost, closing the stream error=%s", error)
                stream.abort()
                return
            self._note_talk_in_time()
            await asyncio.sleep(interval_s)

    def _note_talk_in_time(self) -> None:
        if asyncio.get_running_loop().time() - self._talk_noted_at >= TALK_NOTED_S:
            self._note_talk()

    def _note_talk(self) -> None:
        """Write down how many messages without a payload left."""
        self._talk_noted_at = asyncio.get_running_loop().time()
        try:
            self._outbox.talked(self._transport.talk)
        except OSError as error:
            logger.error("what was said cannot be written into the outbox ledger yet: %s", error)

    async def _say_goodbye(self, unfinished_task_id: str) -> None:
        self._is_leaving = True
        if unfinished_task_id:
            await self._link.report(
                wire.TaskReport(
                    task_id=unfinished_task_id,
                    outcome=wire.TASK_OUTCOME_ABANDONED,
                    reason="the device's agent was told to stop",
                )
            )
        await self._link.leave()


async def run_agent(settings: ClientSettings) -> int:
    """Be the agent until a signal comes.

    Returns:
      The exit code: 0 after SIGTERM, 130 after SIGINT.

    Raises:
      BitfleetError: why this device cannot take part; ``exit_code`` says which kind.
    """
    state = StateDir(settings.state)
    policy = read_policy(settings.policy)
    settings = replace(settings, threads=min(settings.threads, usable_cores()))
    with state.lock():
        state.clear_task()
        state.note_pause("", [])
        state.note_budgets(Budgets.of(settings, policy).to_dict())
        for problem in state.outbox.begin().problems:
            logger.error("the outbox ledger is not as it was written: %s", problem)
        manager = ServiceManager()
        pulse = asyncio.create_task(manager.keep_informed())
        life = asyncio.create_task(_live(settings, state, policy))
        signals: list[int] = []

        def stop(number: int) -> None:
            logger.info("stopping signal=%s", signal.Signals(number).name)
            signals.append(number)
            manager.stopping()
            life.cancel()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop, number)
        manager.ready()
        await asyncio.wait({life})
        await _end(pulse)
        if not signals:
            life.result()
    return 130 if signals[:1] == [signal.SIGINT] else 0


async def _live(settings: ClientSettings, state: StateDir, policy: Policy) -> None:
    survey = await survey_device(settings)
    agent = Agent(settings, state, survey, policy)
    logger.info(
        "device=%s examples=%d classes=%d isa=%s",
        agent.device_id,
        survey["num_examples"],
        len(survey["classes"]),
        survey["isa"],
    )
    await agent.run()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})

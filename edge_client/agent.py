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
from typing import Any

from bitfleet.v1 import fleet_pb2 as wire
from bnncore.errors import DataError, UnreachableError
from edge_client.backoff import backoff
from edge_client.conditions import read_conditions
from edge_client.courier import Courier
from edge_client.errors import LinkError
from edge_client.link import Link
from edge_client.pss import tree_pss_bytes
from edge_client.settings import ClientSettings
from edge_client.state_dir import StateDir
from edge_client.trainer_process import ask_child
from edge_client.transport import PROTOCOL_MAX, PROTOCOL_MIN, FleetStream, Transport
from edge_client.worker import Worker

__all__ = ["Agent", "run_agent", "survey_device"]

logger = logging.getLogger(__name__)

SURVEY_TIMEOUT_S = 900.0
"""A first look may unpack a compressed data set on a slow card."""

SETTLED_S = 5.0
"""A stream that lived shorter than this does not make the next wait short: two agents of one name would take the
stream from each other without a pause."""

FAREWELL_TIMEOUT_S = 2.0
"""Longest wait for the coordinator to hear that this device leaves."""

HEARTBEAT_INTERVAL_S = 5.0
"""When the coordinator names none."""


async def survey_device(settings: ClientSettings) -> dict[str, Any]:
    """Have a child look at the data (``edge_client.inspect``).

    Raises:
      DataError: the data are missing or damaged, or the child ended without an answer.
    """
    arguments = [] if settings.data is None else ["--data", str(settings.data)]
    if settings.dataset is not None:
        arguments += ["--dataset", settings.dataset]
    try:
        async with asyncio.timeout(SURVEY_TIMEOUT_S):
            answer = await ask_child("edge_client.inspect", *arguments)
    except TimeoutError:
        raise DataError(f"the data must be readable within {SURVEY_TIMEOUT_S:.0f} s; is the disk failing?") from None
    if answer is None:
        raise DataError("the process that looks at the data ended without an answer; what it printed above says why")
    if "error" in answer:
        raise DataError(answer["error"])
    return answer


class Agent:
    """One device's connection to one coordinator.

    Args:
      settings: the effective settings.
      state: the state folder, locked by this process.
      survey: what ``survey_device`` found.

    Attributes:
      device_id: the device's lasting name.

    Raises:
      StateFolderError: the folder belongs to another device.
    """

    def __init__(self, settings: ClientSettings, state: StateDir, survey: dict[str, Any]) -> None:
        self.device_id = device_id = state.settle_device_id(settings.device_id)
        self._hello = wire.Hello(
            protocol_min=PROTOCOL_MIN,
            protocol_max=PROTOCOL_MAX,
            client_version=survey["version"],
            device_id=device_id,
            data=wire.DataSummary(
                classes=survey["classes"], input_shape=survey["input_shape"], num_examples=survey["num_examples"]
            ),
            capabilities=wire.Capabilities(
                isa=survey["isa"],
                threads=settings.threads,
                memory_bytes=settings.memory_budget,
                machine=survey["machine"],
            ),
        )
        self._settings = settings
        self._is_leaving = False
        self._max_retries = settings.max_retries
        self._transport = Transport(settings.server)
        self._link = Link()
        courier = Courier(self._transport, self._link, state, device_id)
        self._worker = Worker(settings, state, device_id, courier, self._link)

    async def run(self) -> None:
        """Work until cancelled. Cancelled in the middle of a task, it tells the coordinator that none will come.

        Raises:
          ProtocolError: the coordinator refuses this client.
          UnreachableError: ``max_retries`` attempts in a row failed.
        """
        worker = asyncio.create_task(self._worker.run())
        keeper = asyncio.create_task(self._keep_connected())
        try:
            await asyncio.wait({worker, keeper}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _end(worker)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FAREWELL_TIMEOUT_S):
                    await self._say_goodbye(self._worker.unfinished_task_id)
            await _end(keeper)
            await self._transport.close()
        for task in (keeper, worker):
            if not task.cancelled():
                task.result()

    async def _keep_connected(self) -> None:
        failures = 0
        delays = backoff()
        while True:
            welcomed_at = math.inf
            try:
                self._hello.conditions.CopyFrom(read_conditions(self._settings))
                async with self._transport.connect(self._hello) as stream:
                    failures = 0
                    welcomed_at = asyncio.get_running_loop().time()
                    await self._serve(stream)
            except LinkError as error:
                if self._is_leaving:
                    return
                if asyncio.get_running_loop().time() - welcomed_at > SETTLED_S:
                    delays = backoff()
                delay_s = next(delays)
                server = self._transport.address
                if failures == self._max_retries:
                    raise UnreachableError(
                        f"the coordinator at {server} must answer within {failures + 1} attempts, the last one failed: "
                        f"{error}. Is it running, and is --server right?"
                    ) from error
                failures += 1
                logger.warning("no link to server=%s, next try in %.1f s error=%s", server, delay_s, error)
                await asyncio.sleep(delay_s)

    async def _serve(self, stream: FleetStream) -> None:
        """Live on one stream until it breaks."""
        logger.info("welcomed server=%s server_version=%s", self._transport.address, stream.welcome.server_version)
        self._worker.forget_waiting()
        self._link.up(stream)
        heart = asyncio.create_task(self._beat(stream))
        try:
            while True:
                answer = await stream.receive()
                match answer.WhichOneof("event"):
                    case "task":
                        self._worker.offer(answer.task)
                    case "cancel":
                        self._worker.cancel(answer.cancel.task_id, answer.cancel.reason)
                    case other:
                        logger.warning("unknown event from the coordinator event=%s; is this client too old?", other)
        finally:
            self._link.down()
            await _end(heart)

    async def _beat(self, stream: FleetStream) -> None:
        interval_s = stream.welcome.heartbeat_interval_s or HEARTBEAT_INTERVAL_S
        while True:
            now = self._worker.activity
            heartbeat = wire.Heartbeat(
                state=now.state,
                task_id=now.task_id,
                step=now.step,
                total_steps=now.total_steps,
                pss_bytes=tree_pss_bytes(os.getpid()),
                conditions=read_conditions(self._settings),
            )
            try:
                await stream.send(wire.ConnectRequest(heartbeat=heartbeat))
            except LinkError as error:
                if self._is_leaving:
                    return
                logger.warning("heartbeat lost, closing the stream error=%s", error)
                stream.abort()
                return
            await asyncio.sleep(interval_s)

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
    with state.lock():
        state.clear_task()
        life = asyncio.create_task(_live(settings, state))
        signals: list[int] = []

        def stop(number: int) -> None:
            logger.info("stopping signal=%s", signal.Signals(number).name)
            signals.append(number)
            life.cancel()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop, number)
        await asyncio.wait({life})
        if not signals:
            life.result()
    return 130 if signals[:1] == [signal.SIGINT] else 0


async def _live(settings: ClientSettings, state: StateDir) -> None:
    survey = await survey_device(settings)
    agent = Agent(settings, state, survey)
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

"""What the device's data are: looked at before the agent connects, and again while it runs, since folders grow.

Each look is a child of its own (``edge_client.inspect``). It compares names, sizes and times of change first; only
where those have changed, and stand still again, the data are surveyed anew. Nobody looks while a task is at hand: its
data set is what it was when it began anyway.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from bitfleet.v1 import fleet_pb2 as wire
from bnncore.errors import DataError
from edge_client.settings import ClientSettings
from edge_client.trainer_process import ask_child

__all__ = ["DataWatch", "data_summary", "survey_device"]

logger = logging.getLogger(__name__)

SURVEY_TIMEOUT_S = 900.0
"""A first look may unpack a compressed data set on a slow card."""

IDLE_CHECK_S = 1.0
"""Between two looks at whether a task is still at hand, once it is time to look at the data."""

Survey = dict[str, Any]


async def survey_device(settings: ClientSettings, known: str | None = None) -> Survey:
    """Have a child look at the data (``edge_client.inspect``).

    Args:
      settings: the agent's.
      known: the signature of the last look; None: there was none.

    Returns:
      What it says of the data and the device, with their ``signature``. Where that is the known one, or the data are
      still being written, nothing but the known signature.

    Raises:
      DataError: the data are missing or damaged, or the child ended without an answer.
    """
    arguments = [] if settings.data is None else ["--data", str(settings.data)]
    if settings.dataset is not None:
        arguments += ["--dataset", settings.dataset]
    if known is not None:
        arguments += ["--known", known]
    try:
        async with asyncio.timeout(SURVEY_TIMEOUT_S):
            answer = await ask_child("edge_client.inspect", *arguments)
    except TimeoutError:
        raise DataError(f"the data must be readable within {SURVEY_TIMEOUT_S:.0f} s; is the disk failing?") from None
    if answer is None:
        raise DataError("the process that looks at the data ended without an answer; what it printed above says why")
    if "error" in answer and known is None:
        raise DataError(answer["error"])
    return answer


def data_summary(survey: Survey) -> wire.DataSummary:
    """Give what the coordinator is told of the data."""
    return wire.DataSummary(**{field.name: survey[field.name] for field in wire.DataSummary.DESCRIPTOR.fields})


class DataWatch:
    """Looks at the data now and then.

    Args:
      settings: the agent's; ``watch`` says how often.
      survey: of the start.
      is_idle: says whether no task is at hand.
      on_change: told what the data are now, when that is something else.
    """

    def __init__(
        self,
        settings: ClientSettings,
        survey: Survey,
        is_idle: Callable[[], bool],
        on_change: Callable[[wire.DataSummary], None],
    ) -> None:
        self._settings = settings
        self._signature = str(survey["signature"])
        self._told = data_summary(survey)
        self._is_idle = is_idle
        self._on_change = on_change

    async def run(self) -> None:
        """Look until cancelled."""
        pause_s = self._settings.watch
        while True:
            await asyncio.sleep(pause_s)
            if not self._is_idle():
                pause_s = IDLE_CHECK_S
                continue
            pause_s = self._settings.watch
            try:
                survey = await survey_device(self._settings, self._signature)
            except (DataError, OSError) as error:  # the next look may do better
                logger.error("the data cannot be looked at: %s", error)
                continue
            if survey["signature"] == self._signature:
                continue
            if not self._is_idle():  # a task came meanwhile; what was found waits, and is looked at again
                pause_s = IDLE_CHECK_S
                continue
            self._signature = survey["signature"]
            self._tell(survey)

    def _tell(self, survey: Survey) -> None:
        summary = wire.DataSummary()
        summary.CopyFrom(self._told)
        if "error" in survey:
            logger.error("nothing can be trained on until the data are mended: %s", survey["error"])
            summary.num_examples = 0
        else:
            summary = data_summary(survey)
        if summary == self._told:
            return
        self._told = summary
        logger.info("the data have changed examples=%d classes=%d", summary.num_examples, len(summary.classes))
        self._on_change(summary)

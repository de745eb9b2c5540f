"""What an update's header must say to be read on."""

from __future__ import annotations

from server.coordinator.events import AnswerUpdate, ExchangeStep, SubmitStatus, UpdateOffered
from server.coordinator.exchange_runner import ExchangeRunner
from server.coordinator.messages import SubmitAnswer, UpdateHeader, task_id_of
from server.coordinator.round import advance
from server.coordinator.round_state import Round
from server.errors import NotReadyError
from server.jobs import JobConfig
from server.storage.base import VersionRecord

_KEYS_BYTES = 8192
"""Most of a device's keys, with its certificate and signature."""


def judge_header(
    header: UpdateHeader,
    config: JobConfig,
    base: VersionRecord,
    round_: Round,
    exchange: ExchangeRunner | None,
    now: float,
) -> SubmitAnswer | None:
    """Judge an update, or a step of an exchange, by its header.

    Args:
      header: what the device says of it.
      config: the job's.
      base: the version that the device's task starts from.
      round_: where the open round stands.
      exchange: its members', from when their keys are there.
      now: clock.

    Returns:
      An answer when its bytes need not be read, None when they are wanted.

    Raises:
      NotReadyError: the round has just closed, and the next one will take the update.
    """
    number, open_number = base.version + 1, round_.rules.round_number
    if header.round_number < number:
        reason = f"round {header.round_number} has closed; the open round is {open_number}"
        return SubmitAnswer(SubmitStatus.LATE, reason)
    if header.round_number == number and 0 < header.attempt < round_.exchange:
        reason = f"exchange {header.attempt} is over; the task was sent again for exchange {round_.exchange}"
        return SubmitAnswer(SubmitStatus.LATE, reason)
    problem = _problem_with(header, config, base, round_.exchange)
    if header.step not in (None, ExchangeStep.KEYS):
        return _judge_step(header, header.step, exchange, problem)
    _, effects = advance(round_, UpdateOffered(header.device_id), now)
    verdict = next((effect for effect in effects if isinstance(effect, AnswerUpdate)), None)
    if verdict is None:
        raise NotReadyError(f"round {open_number} has closed; send the update to the next one in a moment")
    if header.round_number == number and verdict.status in (SubmitStatus.DUPLICATE, SubmitStatus.LATE):
        return SubmitAnswer(verdict.status, verdict.reason)
    problem = problem or verdict.reason
    return SubmitAnswer(SubmitStatus.REJECTED, problem) if problem else None


def _judge_step(
    header: UpdateHeader, step: ExchangeStep, exchange: ExchangeRunner | None, problem: str
) -> SubmitAnswer | None:
    """Judge a step after the keys."""
    if exchange is not None and not problem:
        problem = exchange.problem_with_size(step, header.total_bytes)
    if exchange is not None and not problem:
        return exchange.judge(header.device_id, step)
    reason = problem or "the round still collects its members' keys: no step after them was asked for"
    return SubmitAnswer(SubmitStatus.REJECTED, reason)


def _problem_with(header: UpdateHeader, config: JobConfig, base: VersionRecord, exchange: int) -> str:
    """Say what is wrong with a header; empty: nothing.

    Args:
      header: of an update, or of a step of an exchange.
      config: the job's.
      base: the version that the device's task starts from.
      exchange: under secure aggregation, the one that the round is in.
    """
    number = base.version + 1
    if header.round_number != number:
        return f"round {header.round_number} has not begun; the open round is {number}"
    if header.task_id != task_id_of(header.job_id, number, header.device_id):
        return f"task_id {header.task_id!r} is not the task of device {header.device_id} in round {number}"
    if header.model_digest != base.payload_digest:
        return f"round {number} starts from model {base.payload_digest}, the update from {header.model_digest}"
    codec, _ = config.update_form(number)
    if header.codec != codec:
        return f"codec must be {codec!r}, got {header.codec!r}"
    return _problem_with_step(header, is_secure=config.secure_aggregation is not None, exchange=exchange)


def _problem_with_step(header: UpdateHeader, *, is_secure: bool, exchange: int) -> str:
    if not is_secure:
        return "" if header.step is None else f"the job adds no updates up under masks, got step {header.step}"
    if header.step is None:
        return "the job adds updates up under masks and takes none in the clear; upgrade the device"
    if header.attempt != exchange:
        return f"the present exchange is {exchange}, got a step of {header.attempt}"
    if header.step is ExchangeStep.KEYS and header.num_examples != 1:
        return f"under masks every device counts as one: num_examples must be 1, got {header.num_examples}"
    if header.step is ExchangeStep.KEYS and header.total_bytes > _KEYS_BYTES:
        return f"keys must have at most {_KEYS_BYTES} bytes, these have {header.total_bytes}"
    return ""

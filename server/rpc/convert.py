"""Between protobuf messages and the domain's own values. What comes from a device is checked here, field by field."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from bitfleet.v1 import fleet_pb2 as pb
from server.coordinator.events import ExchangeStep, TaskOutcome
from server.coordinator.messages import (
    Conditions,
    DeviceHello,
    ExchangeOrder,
    Heartbeat,
    SecureTerms,
    SubmitAnswer,
    TaskOrder,
    UpdateHeader,
)
from server.errors import InvalidRequestError
from server.strategies import MAX_WEIGHT

_DEVICE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MAX_CLASSES = 100_000
_MAX_CLASS_NAME = 200
_JOULES_SOURCES = frozenset({"rapl", "pmic", "ina219", "hwmon", "model"})


def hello_of(message: pb.Hello, labels: Mapping[str, str]) -> DeviceHello:
    """Check and convert a Hello; the labels are what the coordinator itself knows of the device.

    Raises:
      InvalidRequestError: a field is malformed.
    """
    check_device_id(message.device_id)
    data, capabilities = message.data, message.capabilities
    if len(data.classes) > _MAX_CLASSES or len(set(data.classes)) != len(data.classes):
        raise InvalidRequestError(f"data.classes must be at most {_MAX_CLASSES} different names")
    return DeviceHello(
        device_id=message.device_id,
        client_version=_text(message.client_version, 64),
        classes=tuple(_text(name, _MAX_CLASS_NAME) for name in data.classes),
        input_shape=tuple(data.input_shape),
        num_examples=_count("data.num_examples", data.num_examples),
        any_image_shape=data.any_image_shape,
        needs_input_range=data.needs_input_range,
        isa=_text(capabilities.isa, 64),
        threads=min(capabilities.threads, 2**16),
        memory_bytes=_count("capabilities.memory_bytes", capabilities.memory_bytes),
        machine=_text(capabilities.machine, 64),
        conditions=_conditions_of(message.conditions),
        labels=labels,
    )


def _conditions_of(message: pb.Conditions) -> Conditions:
    return Conditions(
        on_battery=message.on_battery,
        metered=message.metered,
        too_hot=message.too_hot,
        outside_hours=message.outside_hours,
    )


def _text(value: str, limit: int) -> str:
    """Cut a text that goes into logs and the database, and replace what is not printable: it could forge a line."""
    return "".join(character if character.isprintable() else "?" for character in value[:limit])


def check_device_id(device_id: str) -> None:
    """Raise InvalidRequestError unless a device's name is well-formed."""
    if not _DEVICE_ID.fullmatch(device_id):
        raise InvalidRequestError(f"device_id must be 1 to 64 characters of [A-Za-z0-9._-], got {device_id[:80]!r}")


def heartbeat_of(message: pb.Heartbeat) -> Heartbeat:
    """Convert a heartbeat."""
    state = message.state if message.state in pb.DeviceState.values() else pb.DEVICE_STATE_UNSPECIFIED
    return Heartbeat(
        state=pb.DeviceState.Name(state).removeprefix("DEVICE_STATE_"),
        task_id=_text(message.task_id, 256),
        step=message.step,
        total_steps=message.total_steps,
        pss_bytes=_count("pss_bytes", message.pss_bytes),
        conditions=_conditions_of(message.conditions),
        temperature_c=_temperature_of(message),
    )


def _temperature_of(message: pb.Heartbeat) -> float | None:
    is_told = message.HasField("temperature_c") and math.isfinite(message.temperature_c)
    return round(message.temperature_c, 3) if is_told else None


def report_of(message: pb.TaskReport) -> tuple[str, TaskOutcome, str]:
    """Convert a report to (task id, outcome, reason)."""
    return _text(message.task_id, 256), outcome_of(message), _text(message.reason, 500)


def outcome_of(message: pb.TaskReport) -> TaskOutcome:
    """Convert a report's outcome; one that this version does not know counts as a failure."""
    match message.outcome:
        case pb.TASK_OUTCOME_DECLINED:
            return TaskOutcome.DECLINED
        case pb.TASK_OUTCOME_ABANDONED:
            return TaskOutcome.ABANDONED
        case _:
            return TaskOutcome.FAILED


def header_of(message: pb.UpdateHeader, *, key_digest: str | None) -> UpdateHeader:
    """Check and convert an update's header; the digest is of the key that the link's certificate is of.

    Raises:
      InvalidRequestError: a field is malformed. Values that are well-formed but wrong are the round's to refuse.
    """
    check_device_id(message.device_id)
    metrics = message.metrics
    return UpdateHeader(
        device_id=message.device_id,
        task_id=_text(message.task_id, 256),
        job_id=_text(message.job_id, 80),
        round_number=min(message.round_number, 2**31 - 1),
        model_digest=_text(message.model_digest, 64),
        update_digest=_text(message.update_digest, 64),
        total_bytes=_count("total_bytes", message.total_bytes),
        num_examples=_count("num_examples", message.num_examples),
        codec=_text(message.codec, 32),
        loss=metrics.loss if message.HasField("metrics") and math.isfinite(metrics.loss) else None,
        seconds=metrics.seconds if message.HasField("metrics") and 0 <= metrics.seconds < math.inf else None,
        training_seconds=metrics.training_seconds if 0 < metrics.training_seconds < math.inf else None,
        steps=min(metrics.steps, 2**31 - 1),
        peak_pss_bytes=_count("peak_pss_bytes", metrics.peak_pss_bytes),
        **_score_of(metrics),
        **_energy_of(metrics),
        step=_step_of(message.step),
        attempt=min(message.attempt, 2**31 - 1),
        key_digest=key_digest,
    )


def _step_of(value: int) -> ExchangeStep | None:
    if value == pb.EXCHANGE_STEP_UNSPECIFIED:
        return None
    if value not in pb.ExchangeStep.values():
        raise InvalidRequestError(f"step must be one of an exchange's, got {value}; upgrade the coordinator")
    return ExchangeStep(pb.ExchangeStep.Name(value).removeprefix("EXCHANGE_STEP_"))


def _energy_of(metrics: pb.UpdateMetrics) -> dict[str, Any]:
    """Give the joules of a training; nothing where they cannot be true, or their source is not told."""
    if not 0 < metrics.joules < math.inf or metrics.joules_source not in _JOULES_SOURCES:
        return {}
    return {"joules": metrics.joules, "joules_source": metrics.joules_source}


def _score_of(metrics: pb.UpdateMetrics) -> dict[str, Any]:
    """Give what a device says of the model on its validation part; nothing where that cannot be true."""
    examples, correct, loss = metrics.validation_examples, metrics.validation_correct, metrics.validation_loss
    if not (0 < examples <= MAX_WEIGHT and correct <= examples and 0 <= loss < math.inf):
        return {}
    return {"validation_examples": examples, "validation_correct": correct, "validation_loss": loss}


def task_message(order: TaskOrder, *, now: float, urls: Mapping[str, str] = MappingProxyType({})) -> pb.ConnectResponse:
    """Build a Task; its deadline is told in seconds from now.

    Args:
      order: the task.
      now: on the clock of its deadline.
      urls: by digest, where payloads can be read past the coordinator.
    """
    task = pb.Task(
        task_id=order.task_id,
        job_id=order.job_id,
        round_number=order.round_number,
        model_digest=order.model_digest,
        model_bytes=order.model_bytes,
        download_url=urls.get(order.model_digest, ""),
        spec_json=order.spec_json,
        training=pb.TrainingConfig(
            preset=order.preset,
            optimizer=order.optimizer,
            batch_size=order.batch_size,
            local_steps=order.local_steps,
            step_scale=order.step_scale,
            seed=order.seed,
            proximal_mu=order.proximal_mu,
            statistics_batches=order.statistics_batches,
            local_validation=order.local_validation,
        ),
        down_codec=order.down_codec,
        up_codec=order.up_codec,
        classes=order.classes,
        local_tensors=order.local_tensors,
        quorum=order.quorum,
        deadline_s=max(0.0, order.deadline_at - now),
        steps=[
            pb.ModelStep(
                base_digest=bytes.fromhex(step.base_digest),
                digest=bytes.fromhex(step.digest),
                num_bytes=step.num_bytes,
                download_url=urls.get(step.digest, ""),
            )
            for step in order.steps
        ],
    )
    if order.initial_seed is not None:
        task.initial_seed = order.initial_seed
    if order.secure is not None:
        task.secure.CopyFrom(_secure_message(order.secure))
    if order.input_range is not None:
        task.input_range.CopyFrom(pb.InputRange(low=order.input_range.low, high=order.input_range.high))
    return pb.ConnectResponse(task=task)


def _secure_message(terms: SecureTerms) -> pb.SecureAggregation:
    message = pb.SecureAggregation(
        attempt=terms.attempt,
        min_members=terms.min_members,
        threshold=terms.threshold,
        degree=terms.degree,
        weights=terms.weights,
        clip=terms.clip,
        scales=terms.scales,
    )
    if terms.privacy is not None:
        message.privacy.CopyFrom(pb.DifferentialPrivacy(**asdict(terms.privacy)))
    return message


def exchange_message(order: ExchangeOrder) -> pb.ConnectResponse:
    """Build an ExchangeOrder."""
    return pb.ConnectResponse(
        exchange=pb.ExchangeOrder(
            task_id=order.task_id,
            attempt=order.attempt,
            step=f"EXCHANGE_STEP_{order.step}",
            num_members=order.num_members,
            peers=[pb.ExchangePeer(**vars(peer)) for peer in order.peers],
            graph_seed=order.graph_seed,
        )
    )


def answer_message(answer: SubmitAnswer) -> pb.SubmitUpdateResponse:
    """Build the answer to an update."""
    return pb.SubmitUpdateResponse(status=f"SUBMIT_STATUS_{answer.status}", reason=answer.reason)


def _count(name: str, value: int) -> int:
    if value >= 2**63:
        raise InvalidRequestError(f"{name} must be below 2^63, got {value}")
    return value

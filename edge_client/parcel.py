"""A payload that is to leave, with all that is said of it: to the coordinator, and in the outbox ledger."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bitfleet.v1 import fleet_pb2 as wire
from edge_client.outbox import Dispatch, Privacy, utc_now
from edge_client.pending_update import PendingUpdate

__all__ = ["Parcel", "name_of_step", "parcel_of_step", "parcel_of_update"]


@dataclass(frozen=True)
class Parcel:
    """One payload.

    Attributes:
      header: what the coordinator is told of it.
      path: its bytes.
      privacy: the noise that was promised for the sum that it goes into; None: none.
    """

    header: wire.UpdateHeader
    path: Path
    privacy: Privacy | None = None

    @property
    def kind(self) -> str:
        """What it is: ``update``, or the step of an exchange in small letters."""
        step = self.header.step
        return "update" if step == wire.EXCHANGE_STEP_UNSPECIFIED else name_of_step(step)

    def dispatch(self) -> Dispatch:
        """Give what the ledger says of it when it is sent now."""
        header = self.header
        return Dispatch(
            at=utc_now(),
            kind=self.kind,
            job_id=header.job_id,
            round_number=header.round_number,
            task_id=header.task_id,
            bytes=header.total_bytes,
            digest=header.update_digest,
            attempt=header.attempt,
            privacy=self.privacy,
        )


def name_of_step(step: wire.ExchangeStep) -> str:
    """Name a step of an exchange as files and the ledger do: keys, shares, masked, reveal."""
    return wire.ExchangeStep.Name(step).removeprefix("EXCHANGE_STEP_").lower()


def parcel_of_update(update: PendingUpdate, device_id: str, path: Path) -> Parcel:
    """Pack an update."""
    header = _header(update, device_id)
    header.update_digest, header.total_bytes = update.update_digest, update.total_bytes
    header.num_examples = update.num_examples
    header.metrics.loss = update.loss
    header.metrics.accuracy = update.accuracy
    header.metrics.validation_examples = update.validation_examples
    header.metrics.validation_correct = update.validation_correct
    header.metrics.validation_loss = update.validation_loss
    return Parcel(header, path)


def parcel_of_step(
    update: PendingUpdate,
    device_id: str,
    path: Path,
    *,
    step: wire.ExchangeStep,
    attempt: int,
    digest: str,
    privacy: Privacy | None,
) -> Parcel:
    """Pack a step of an exchange: what says something of the data is in the sum alone, and is 0 here."""
    header = _header(update, device_id)
    header.update_digest, header.total_bytes = digest, path.stat().st_size
    header.num_examples, header.step, header.attempt = 1, step, attempt
    return Parcel(header, path, privacy)


def _header(update: PendingUpdate, device_id: str) -> wire.UpdateHeader:
    return wire.UpdateHeader(
        device_id=device_id,
        task_id=update.task_id,
        job_id=update.job_id,
        round_number=update.round_number,
        model_digest=update.model_digest,
        codec=update.codec,
        metrics=wire.UpdateMetrics(
            steps=update.steps,
            seconds=update.seconds,
            peak_pss_bytes=update.peak_pss_bytes,
            downloaded_bytes=update.downloaded_bytes,
            training_seconds=update.training_seconds,
            joules=update.joules,
            joules_source=update.joules_source,
        ),
    )

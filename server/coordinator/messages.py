"""What devices and the coordinator say to each other, without any transport."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from server.coordinator.events import SubmitStatus


@dataclass(frozen=True)
class Conditions:
    """What keeps a device from work at the moment, by its owner's rules."""

    on_battery: bool = False
    metered: bool = False
    too_hot: bool = False

    @property
    def reason(self) -> str | None:
        """What it is in words; None: nothing."""
        words = ("it runs on battery", "its network is metered", "it is too hot")
        holds = (self.on_battery, self.metered, self.too_hot)
        return ", ".join(itertools.compress(words, holds)) or None


@dataclass(frozen=True)
class DeviceHello:
    """Who a device is and what it could train on."""

    device_id: str
    client_version: str
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    num_examples: int
    isa: str = ""
    threads: int = 1
    memory_bytes: int = 0
    machine: str = ""
    conditions: Conditions = Conditions()


@dataclass(frozen=True)
class Heartbeat:
    """What a device is doing now."""

    state: str = "IDLE"
    task_id: str = ""
    step: int = 0
    total_steps: int = 0
    pss_bytes: int = 0
    conditions: Conditions = Conditions()


@dataclass(frozen=True)
class ModelStep:
    """A step from one model version to the next: digests of payloads in lower-case hex, and its size."""

    base_digest: str
    digest: str
    num_bytes: int


@dataclass(frozen=True)
class TaskOrder:
    """Train a model version on the device's own data."""

    task_id: str
    job_id: str
    round_number: int
    model_digest: str
    model_bytes: int
    initial_seed: int | None
    """Set when the model is the job's initial one, which a device can make itself, or ``steps`` begin there."""
    spec_json: str
    preset: str
    optimizer: str
    batch_size: int
    local_steps: int
    step_scale: float
    seed: int
    down_codec: str
    up_codec: str
    classes: tuple[str, ...]
    deadline_at: float
    """On the coordinator's monotonic clock."""
    proximal_mu: float = 0.0
    """Strength of the pull to the model after every local step; 0: none."""
    statistics_batches: int = 0
    """Batches on which the device takes the model's statistics; 0: it sends the running ones of its training."""
    steps: tuple[ModelStep, ...] = ()
    """The newest steps to the model, oldest first; fewer bytes than the model."""


@dataclass(frozen=True)
class CancelOrder:
    """The coordinator no longer waits for a task."""

    task_id: str
    reason: str


Order = TaskOrder | CancelOrder


@dataclass(frozen=True)
class UpdateHeader:
    """What an update is, before its bytes come."""

    device_id: str
    task_id: str
    job_id: str
    round_number: int
    model_digest: str
    update_digest: str
    total_bytes: int
    num_examples: int
    codec: str
    loss: float | None = None
    seconds: float | None = None
    training_seconds: float | None = None
    steps: int = 0
    peak_pss_bytes: int = 0


@dataclass(frozen=True)
class SubmitAnswer:
    """The coordinator's word on an update."""

    status: SubmitStatus
    reason: str = ""


def task_id_of(job_id: str, round_number: int, device_id: str) -> str:
    """Name a task: the same whenever it is sent again, in whichever attempt of its round."""
    return f"{job_id}.r{round_number}.{device_id}"

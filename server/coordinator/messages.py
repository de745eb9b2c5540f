"""What devices and the coordinator say to each other, without any transport."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

from bnncore.data.input_range import InputRange
from server.coordinator.events import ExchangeStep, SubmitStatus


@dataclass(frozen=True)
class Conditions:
    """What keeps a device from work at the moment, by its owner's rules."""

    on_battery: bool = False
    metered: bool = False
    too_hot: bool = False
    outside_hours: bool = False

    @property
    def reason(self) -> str | None:
        """What it is in words; None: nothing."""
        words = ("it runs on battery", "its network is metered", "it is too hot", "it is outside of its hours")
        holds = (self.on_battery, self.metered, self.too_hot, self.outside_hours)
        return ", ".join(itertools.compress(words, holds)) or None


@dataclass(frozen=True)
class DeviceHello:
    """Who a device is and what it could train on."""

    device_id: str
    client_version: str
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    num_examples: int
    any_image_shape: bool = False
    """Its samples are pictures, which it brings to any job's shape."""
    needs_input_range: bool = False
    """Its samples are real numbers, which a job's range turns into 8-bit ones."""
    isa: str = ""
    threads: int = 1
    memory_bytes: int = 0
    machine: str = ""
    conditions: Conditions = Conditions()
    labels: Mapping[str, str] = field(default_factory=dict)
    """What its operator calls it; not the device's own word."""


@dataclass(frozen=True)
class Heartbeat:
    """What a device is doing now."""

    state: str = "IDLE"
    task_id: str = ""
    step: int = 0
    total_steps: int = 0
    pss_bytes: int = 0
    conditions: Conditions = Conditions()
    temperature_c: float | None = None
    """Of its hottest thermal zone; None: it has none."""

    @property
    def paused_by(self) -> str | None:
        """What holds its trainer in the middle of a task, in words; None: nothing."""
        return self.conditions.reason if self.state == "PAUSED" else None


@dataclass(frozen=True)
class ModelStep:
    """A step from one model version to the next: digests of payloads in lower-case hex, and its size."""

    base_digest: str
    digest: str
    num_bytes: int


@dataclass(frozen=True)
class PrivacyTerms:
    """Noise and bound of an update, for differential privacy at the level of a device."""

    mechanism: str
    clip: float
    noise_multiplier: float
    delta: float


@dataclass(frozen=True)
class SecureTerms:
    """How a round's updates are added up under masks."""

    attempt: int
    """The exchange, counted from 1 in its round."""
    min_members: int
    threshold: float
    degree: int
    weights: str
    clip: int
    scales: bytes = b""
    """Magnitudes of signs that the cohort has in common; empty while none were agreed."""
    privacy: PrivacyTerms | None = None


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
    local_validation: float = 0.0
    """Part of the device's data on which it evaluates the model instead of training on it."""
    steps: tuple[ModelStep, ...] = ()
    """The newest steps to the model, oldest first; fewer bytes than the model."""
    local_tensors: tuple[str, ...] = ()
    """Names of the tensors that stay on the device."""
    quorum: int = 0
    """Updates that the round's model is made of at least."""
    secure: SecureTerms | None = None
    input_range: InputRange | None = None
    """By which the device's real numbers become 8-bit input; None: its samples are read as they are."""


@dataclass(frozen=True)
class CancelOrder:
    """The coordinator no longer waits for a task."""

    task_id: str
    reason: str


@dataclass(frozen=True)
class ExchangePeer:
    """What a device is told of a member of its exchange."""

    device_id: str
    keys: bytes = b""
    sealed: bytes = b""
    survived: bool = False
    position: int = 0


@dataclass(frozen=True)
class ExchangeOrder:
    """Take the next step of the exchange that a task is in."""

    task_id: str
    attempt: int
    step: ExchangeStep
    num_members: int
    peers: tuple[ExchangePeer, ...]
    graph_seed: bytes = b""


Order = TaskOrder | CancelOrder | ExchangeOrder


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
    validation_examples: int = 0
    validation_correct: int = 0
    validation_loss: float | None = None
    joules: float | None = None
    joules_source: str = ""
    step: ExchangeStep | None = None
    """The step of an exchange that the payload is; None: an update."""
    attempt: int = 0
    """The exchange, counted from 1 in its round; 0 for an update."""
    key_digest: str | None = None
    """Of the key that the link's certificate is of: who sends. Not the device's own word; None: nobody was asked."""


@dataclass(frozen=True)
class SubmitAnswer:
    """The coordinator's word on an update."""

    status: SubmitStatus
    reason: str = ""


def task_id_of(job_id: str, round_number: int, device_id: str) -> str:
    """Name a task: the same whenever it is sent again, in whichever attempt of its round."""
    return f"{job_id}.r{round_number}.{device_id}"

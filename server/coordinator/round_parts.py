"""What a round is played with, and the tasks that are made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bnncore.secure.terms import Context, ExchangeRules
from bnncore.secure.values import ValueForm
from server.coordinator.combining import Arithmetic, MaskedArithmetic
from server.coordinator.disk import Disk
from server.coordinator.dispatch import Dispatcher
from server.coordinator.messages import ModelStep, PrivacyTerms, SecureTerms, TaskOrder, task_id_of
from server.coordinator.remembered import Remembered
from server.coordinator.versions import VersionWriter
from server.jobs import JobConfig
from server.secure_jobs import WEIGHT_FORMS
from server.storage.base import VersionRecord


@dataclass(frozen=True)
class RoundParts:
    """What a round is played with."""

    config: JobConfig
    spec_json: str
    optimizer: str
    disk: Disk
    dispatcher: Dispatcher
    writer: VersionWriter
    clock: Callable[[], float]
    base: VersionRecord
    """The version that the round starts from."""
    steps: tuple[ModelStep, ...] = ()
    """The newest steps to it."""
    from_seed: bool = True
    """Whether the steps, or the version itself where there are none, begin at the job's initial model."""
    measured: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    """``Storage.measured_steps`` before this round; of a carried device that is what it was before its task."""

    remembered: Remembered = field(default_factory=Remembered)
    """Where updates are told as whole numbers: what the round before left for this one."""
    arithmetic: Arithmetic = field(default_factory=MaskedArithmetic)

    @property
    def form(self) -> ValueForm:
        """How the round's updates are told as whole numbers, under secure aggregation."""
        return self.config.value_form(self.base.version + 1, self.remembered.clip)

    def context(self, exchange: int) -> Context:
        """Name an exchange of the round: what its messages are bound to."""
        return Context(self.base.job_id, self.base.version + 1, exchange, self.base.payload_digest)

    @property
    def exchange_rules(self) -> ExchangeRules:
        """What an exchange promises to its members."""
        secure = self.config.secure_aggregation
        assert secure is not None
        return ExchangeRules(secure.min_members, secure.threshold, secure.degree)

    def _secure_terms(self, exchange: int) -> SecureTerms | None:
        secure = self.config.secure_aggregation
        if secure is None:
            return None
        return SecureTerms(
            attempt=exchange,
            min_members=secure.min_members,
            threshold=secure.threshold,
            degree=secure.degree,
            weights=WEIGHT_FORMS[self.config.up_codec],
            clip=secure.clip,
            scales=self.remembered.scales,
            privacy=self._privacy_terms(),
        )

    def task_for(
        self, device_id: str, base: VersionRecord, *, closes_at: float, quorum: int, exchange: int
    ) -> TaskOrder:
        """Make a device's task.

        Args:
          device_id: the device.
          base: the version that it starts from: the round's, or an older one of whoever was carried into it.
          closes_at: when the round closes at the latest, on ``clock``.
          quorum: updates that the round needs.
          exchange: under secure aggregation, the one that is wanted of the device.
        """
        config, number = self.config, base.version + 1
        steps, from_seed = self.steps, self.from_seed
        if base != self.base:
            steps, from_seed = (), base.version == 0 and config.start is None
        # An update of the task is taken by some later rounds too, where the strategy is asynchronous.
        later = min(number + config.late_rounds, config.rounds) - (self.base.version + 1)
        return TaskOrder(
            task_id=task_id_of(base.job_id, number, device_id),
            job_id=base.job_id,
            round_number=number,
            model_digest=base.payload_digest,
            model_bytes=base.payload_bytes,
            initial_seed=config.seed if from_seed else None,
            spec_json=self.spec_json,
            preset=config.preset,
            optimizer=self.optimizer,
            batch_size=config.batch_size,
            local_steps=0 if config.is_closing(number) else config.local_steps_at(self.measured.get(device_id)),
            step_scale=config.local_step_scale(number),
            seed=config.seed,
            down_codec=config.down_codec,
            up_codec=config.update_form(number)[0],
            classes=tuple(config.classes),
            deadline_at=closes_at + max(0, later) * config.deadline_s + config.exchange_s,
            proximal_mu=config.proximal_mu,
            statistics_batches=config.statistics_batches,
            local_validation=config.local_validation,
            local_tensors=tuple(sorted(config.local_names)),
            steps=steps,
            quorum=quorum,
            secure=self._secure_terms(exchange),
            input_range=None if config.input_range is None else config.input_range.range,
        )

    def _privacy_terms(self) -> PrivacyTerms | None:
        choice, privacy = self.config.privacy, self.form.privacy
        if choice is None or privacy is None:
            return None
        return PrivacyTerms(privacy.mechanism, privacy.clip, privacy.noise_multiplier, choice.delta)

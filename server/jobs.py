"""The job file: what a fleet is to learn, validated before anything starts.

Unknown keys are refused. The validated job, with defaults written out, is what is stored. ``server.job_files`` reads
one from a file.
"""

from __future__ import annotations

import fnmatch
import json
import math
from datetime import datetime
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, Field, ValidationError, ValidationInfo, field_validator, model_validator

from bnncore.codec import PayloadKind, get_codec
from bnncore.errors import BitfleetError, SpecError
from bnncore.optimizer import resolve_preset
from bnncore.plan import check_residual_preset
from bnncore.secure.scales import Scales, public_scales, scales_from_bytes
from bnncore.secure.values import ValueForm
from bnncore.spec import ModelSpec
from bnncore.zoo import build
from server.errors import InvalidJobError
from server.input_range import InputRangeChoice
from server.job_parts import EvaluationChoice, JobPart, ModelChoice, StartChoice
from server.job_problems import JobProblem, problems_of
from server.privacy import PrivacyChoice, check_privacy
from server.secure_jobs import NUM_STEPS, WEIGHT_FORMS, SecureChoice, check_secure
from server.strategies import make_strategy

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
_ClassName = Annotated[str, Field(min_length=1, max_length=200)]


CLOSING_CODEC = "float32"
"""The codec of statistics that travel alone."""

_RECIPES: dict[str, dict[str, Any]] = {
    "onebit": {
        "up_codec": "sign",
        "down_codec": "sign",
        "statistics_batches": 20,
        "strategy_params": {"server_step": 2.0},
    }
}
"""What a recipe stands for; docs/federation.md has the experiments behind it."""


class JobConfig(JobPart):
    """A job, validated."""

    name: _Name
    model: ModelChoice
    classes: list[_ClassName] = Field(min_length=2)
    input_shape: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    input_range: InputRangeChoice | None = None
    rounds: int = Field(ge=1, le=1_000_000)
    device_labels: dict[str, str] = Field(default_factory=dict)
    min_devices: int = Field(default=1, ge=1)
    cohort_size: int = Field(default=0, ge=0)
    over_select: float = Field(default=0.0, ge=0, le=10, allow_inf_nan=False)
    quorum: int | None = Field(default=None, ge=1)
    deadline_s: float = Field(default=600.0, gt=0, allow_inf_nan=False)
    local_steps: int = Field(ge=1, le=10_000_000)
    local_seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    batch_size: int = Field(default=100, ge=1, le=65_536)
    preset: str = "bitfleet"
    optimizer: str | None = None
    step_schedule: Literal["linear", "constant", "cosine"] = "linear"
    strategy: str = "fedavg"
    strategy_params: dict[str, float] = Field(default_factory=dict, validate_default=True)
    up_codec: str = "int8"
    down_codec: str = "int8"
    statistics_batches: int = Field(default=0, ge=0, le=10_000)
    local_tensors: list[str] = Field(default_factory=list)
    local_validation: float = Field(default=0.0, ge=0, le=0.5)
    recipe: str | None = None
    seed: int = Field(default=0, ge=0, lt=2**64)
    starts_at: Annotated[AwareDatetime, Field(strict=False)] | None = None
    start: StartChoice | None = None
    evaluation: EvaluationChoice | None = None
    target_accuracy: float | None = Field(default=None, gt=0, le=100)
    target: Literal["evaluation", "local"] = "evaluation"
    max_attempts: int = Field(default=3, ge=1)
    secure_aggregation: SecureChoice | None = None
    privacy: PrivacyChoice | None = None

    @field_validator("starts_at", mode="before")
    @classmethod
    def _is_a_time(cls, value: Any) -> Any:
        """Let nothing but times be read as one: a number has no offset."""
        if value is None or isinstance(value, datetime) or (isinstance(value, str) and ":" in value):
            return value
        raise ValueError("a time with its offset is needed, such as 2026-12-01T08:00:00+01:00")

    @field_validator("starts_at")
    @classmethod
    def _is_tellable(cls, value: datetime | None) -> datetime | None:
        """Leave out the ends of the calendar, which not every zone can tell."""
        if value is not None and not 1970 < value.year < 9999:
            raise ValueError("a year from 1971 to 9998 is needed")
        return value

    @field_validator("strategy", "up_codec", "down_codec")
    @classmethod
    def _exists(cls, value: str, info: ValidationInfo) -> str:
        """Look a name up, so that a wrong one is told with its key and with what there is."""
        try:
            if info.field_name == "strategy":
                make_strategy(value)
            else:
                get_codec(value)
        except BitfleetError as error:
            raise ValueError(str(error)) from error
        return value

    @field_validator("strategy_params")
    @classmethod
    def _complete(cls, value: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        """Check the strategy's parameters and add those that were not given."""
        if "strategy" not in info.data:
            return value
        try:
            return make_strategy(info.data["strategy"], value).parameters()
        except BitfleetError as error:
            raise ValueError(str(error)) from error

    @field_validator("privacy")
    @classmethod
    def _solved(cls, value: PrivacyChoice | None, info: ValidationInfo) -> PrivacyChoice | None:
        """Work out the noise that was not given."""
        if value is None or not {"rounds", "statistics_batches"} <= set(info.data):
            return value
        return value.solved(info.data["rounds"] + (1 if info.data["statistics_batches"] else 0))

    @model_validator(mode="before")
    @classmethod
    def _follow_recipe(cls, value: Any) -> Any:
        """Fill in what the recipe says, where the job does not say it itself."""
        if isinstance(value, dict) and isinstance(recipe := value.get("recipe"), str):
            return {**recipe_of(recipe), **value}
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes must differ from each other, got {self.classes}")
        if self.cohort_size and self.quorum is not None and self.quorum > self.cohort_size:
            raise ValueError(f"quorum ({self.quorum}) can never be reached with a cohort_size of {self.cohort_size}")
        if self.over_select and not self.cohort_size:
            raise ValueError("over_select asks devices beyond cohort_size, which must be set then")
        if self.target == "local" and not self.local_validation:
            raise ValueError("target local is the accuracy on devices' own validation parts; set local_validation")
        if self.target_accuracy is not None and self.target == "evaluation" and self.evaluation is None:
            raise ValueError(
                "target_accuracy is percent of the held-out set, which needs an evaluation; or of the devices' own "
                "validation parts with target local"
            )
        if self.local_validation and not self.statistics_batches:
            raise ValueError(
                "local_validation evaluates a model with statistics that the device has just taken; "
                "set statistics_batches (20 is usual)"
            )
        if self.late_rounds and self.quorum is None:
            raise ValueError(f"strategy {self.strategy!r} needs quorum: the updates at which a round ends")
        for direction, name in (("up_codec", self.up_codec), ("down_codec", self.down_codec)):
            if get_codec(name).is_difference and not self.statistics_batches:
                raise ValueError(
                    f"{direction} {name!r} writes differences, which running statistics do not follow; "
                    "set statistics_batches (20 is usual)"
                )
        if self.secure_aggregation is not None:
            check_secure(
                self.secure_aggregation,
                strategy=self.strategy,
                strategy_params=self.strategy_params,
                up_codec=self.up_codec,
                cohort_size=self.cohort_size,
                quorum=self.quorum,
            )
        spec = self.spec
        self._check_local_tensors(spec)
        if spec.residual is not None:
            check_residual_preset(spec, resolve_preset(self.preset, self.optimizer))
        if spec.classes != len(self.classes):
            raise SpecError(f"the model tells {spec.classes} classes apart, but the job names {len(self.classes)}")
        if spec.input_shape != tuple(self.input_shape):
            raise SpecError(
                f"the model takes samples of shape {list(spec.input_shape)}, but input_shape is {self.input_shape}"
            )
        if self.input_range is not None:
            self.input_range.range.check_fits(self.input_shape)
        if self.privacy is not None:
            check_privacy(
                self.privacy,
                is_secure=self.secure_aggregation is not None,
                strategy=self.strategy,
                strategy_params=self.strategy_params,
                up_codec=self.up_codec,
                local_validation=self.local_validation,
                spec=spec,
            )
        return self

    @property
    def spec(self) -> ModelSpec:
        """The network."""
        if self.model.zoo is None:
            return ModelSpec.from_dict(self.model.spec)
        fitted = {"input_shape": list(self.input_shape), "classes": len(self.classes)}
        return build(self.model.zoo, **{**fitted, **self.model.params})

    def _check_local_tensors(self, spec: ModelSpec) -> None:
        names = list(spec.tensor_shapes())
        for pattern in self.local_tensors:
            if not fnmatch.filter(names, pattern):
                raise ValueError(
                    f"local_tensors: {pattern!r} matches no tensor of model {spec.name!r}, which has {', '.join(names)}"
                )
        if not any(tensor.name not in self.local_names for tensor in spec.tensors if not tensor.is_statistic):
            raise ValueError(f"local_tensors {self.local_tensors} leaves no parameter that devices share")

    @cached_property
    def local_names(self) -> frozenset[str]:
        """Names of the tensors that stay on devices."""
        names = self.spec.tensor_shapes() if self.local_tensors else ()
        return frozenset(name for pattern in self.local_tensors for name in fnmatch.filter(names, pattern))

    @property
    def late_rounds(self) -> int:
        """For how many rounds an update may still come after its own has ended."""
        return make_strategy(self.strategy, self.strategy_params).late_rounds

    @property
    def proximal_mu(self) -> float:
        """Strength of the pull to the round's model after every local step."""
        return make_strategy(self.strategy, self.strategy_params).proximal_mu

    @property
    def enough(self) -> int | None:
        """Accepted updates at which a round closes; None: when nobody is training any more."""
        if self.late_rounds:
            return self.quorum
        return self.cohort_size if self.over_select else None

    @property
    def exchange_s(self) -> float:
        """Most seconds that adding up under masks takes, after a round has collected its keys."""
        return 0.0 if self.secure_aggregation is None else NUM_STEPS * self.secure_aggregation.phase_s

    def keeps_late(self, round_number: int) -> bool:
        """Say whether devices that are still training when a round ends go on, for a later one."""
        return self.late_rounds > 0 and round_number < self.rounds

    @property
    def exchanges(self) -> int:
        """Rounds, and one more without training where devices take the statistics of the model that they are sent."""
        return self.rounds + (1 if self.statistics_batches else 0)

    def is_closing(self, round_number: int) -> bool:
        """Say whether a round is the one after the last, in which nothing is trained."""
        return round_number > self.rounds

    def update_form(self, round_number: int) -> tuple[str, PayloadKind]:
        """Return the codec of a round's updates, and their kind."""
        return (CLOSING_CODEC, "statistics") if self.is_closing(round_number) else (self.up_codec, "update")

    def value_form(self, round_number: int, clip: float | None = None) -> ValueForm:
        """Return how a round's updates are told as whole numbers, where they are added up under masks or bounded.

        Args:
          round_number: of the round.
          clip: under privacy, the round's; None: the job's own.
        """
        secure = self.secure_aggregation
        privacy = None
        if self.privacy is not None:
            privacy = self.privacy.form(1 if secure is None else secure.min_members, clip)
        most = SecureChoice().clip if secure is None else secure.clip
        kind, weights = self.update_form(round_number)[1], WEIGHT_FORMS[self.up_codec]
        return ValueForm(self.spec, kind, self.local_names, weights, most, privacy)

    @property
    def _tells_bare_signs(self) -> bool:
        """Whether devices tell signs alone, whose magnitude the round gives them."""
        return self.privacy is not None and WEIGHT_FORMS[self.up_codec] == "signs"

    def sign_scales(self, round_number: int, agreed: bytes) -> Scales:
        """Return the magnitudes of a round's signs.

        Args:
          round_number: of the round.
          agreed: what the cohort agreed on the round before; empty: nothing.
        """
        if self._tells_bare_signs:
            return public_scales(self.spec, self.step_scale(round_number), self.local_names)
        return scales_from_bytes(self.spec, agreed, self.local_names)

    def local_step_scale(self, round_number: int) -> float:
        """Return the factor on devices' step size: the schedule's, unless it is in what their signs are worth."""
        return 1.0 if self._tells_bare_signs else self.step_scale(round_number)

    def step_scale(self, round_number: int) -> float:
        """Factor on the optimizer's step size in a round: 1 in the first, 0.1 in the last unless constant."""
        if self.step_schedule == "constant" or self.rounds == 1:
            return 1.0
        progress = (round_number - 1) / (self.rounds - 1)
        if self.step_schedule == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return 1.0 - 0.9 * progress

    def local_steps_at(self, measured: tuple[int, float] | None) -> int:
        """Local steps of a device in a round: all of them, or with ``local_seconds`` as many as that leaves time for.

        Args:
          measured: (steps, their seconds) of the device's latest accepted update; None: it sent none yet.
        """
        if self.local_seconds is None:
            return self.local_steps
        if measured is None:
            return max(1, self.local_steps // 10)
        steps, seconds = measured
        return max(1, math.floor(min(self.local_seconds * steps / seconds, self.local_steps)))

    def to_json(self) -> str:
        """Canonical JSON: two jobs are the same when their texts are, whichever version wrote them."""
        value = self.model_dump(mode="json", exclude=self.unused())
        return json.dumps(value, sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> JobConfig:
        """Validate what ``to_json`` wrote, maybe another version's; raises as ``parse_job``."""
        return parse_job(json.loads(text))


def recipe_of(name: str) -> dict[str, Any]:
    """Return what a recipe says: keys of a job with their values.

    Raises:
      InvalidJobError: there is no such recipe.
    """
    if name not in _RECIPES:
        raise InvalidJobError(f"recipe must be one of {', '.join(sorted(_RECIPES))}, got {name!r}")
    return _RECIPES[name]


def parse_job(value: object) -> JobConfig:
    """Validate a job given as a JSON object.

    Raises:
      InvalidJobError: what is wrong, key by key.
    """
    try:
        return JobConfig.model_validate(value)
    except ValidationError as error:
        problems = problems_of(error, JobConfig)
        told = "; ".join(str(problem) for problem in problems)
        raise InvalidJobError(f"the job is not valid: {told}", problems) from error
    except BitfleetError as error:
        where = ("model",) if isinstance(error, SpecError) else ()
        raise InvalidJobError(f"the job is not valid: {error}", (JobProblem(where, str(error)),)) from error

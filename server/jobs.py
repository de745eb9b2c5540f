"""The job file: what a fleet is to learn, validated before anything starts.

JSON or TOML. Unknown keys are refused. The validated job, with every default written out, is what is stored.
"""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from bnncore.codec import PayloadKind, get_codec
from bnncore.errors import BitfleetError, ConfigurationError, SpecError
from bnncore.spec import ModelSpec
from bnncore.zoo import build
from server.errors import InvalidJobError
from server.strategies import make_strategy

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
_ClassName = Annotated[str, Field(min_length=1, max_length=200)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


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


class ModelChoice(_Part):
    """A network: of the zoo, or written out."""

    zoo: str | None = None
    params: dict[str, Any] = Field(default_factory=dict)
    spec: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.zoo is None) == (self.spec is None):
            raise ValueError('exactly one of {"zoo": name} and {"spec": {...}} is required')
        if self.spec is not None and self.params:
            raise ValueError("params belong to a network of the zoo, not to a spec")
        return self


class EvaluationChoice(_Part):
    """The held-out set on which the coordinator evaluates every committed version: the test split of a data set."""

    dataset: str | None = None
    data: str | None = None


class StartChoice(_Part):
    """Where the model starts: a version of a model that is here, or a checkpoint that the coordinator can read."""

    model: str | None = None
    version: int | None = Field(default=None, ge=0)
    checkpoint: str | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.model is None) == (self.checkpoint is None) or (self.model is None) != (self.version is None):
            raise ValueError('exactly one of {"model": job id, "version": number} and {"checkpoint": path} is required')
        return self


class JobConfig(_Part):
    """A job, validated."""

    name: _Name
    model: ModelChoice
    classes: list[_ClassName] = Field(min_length=2)
    input_shape: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    rounds: int = Field(ge=1, le=1_000_000)
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
    recipe: str | None = None
    seed: int = Field(default=0, ge=0, lt=2**64)
    start: StartChoice | None = None
    evaluation: EvaluationChoice | None = None
    target_accuracy: float | None = Field(default=None, gt=0, le=100)
    max_attempts: int = Field(default=3, ge=1)

    @field_validator("strategy_params")
    @classmethod
    def _complete(cls, value: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        """Check the strategy's parameters and add those that were not given."""
        return make_strategy(info.data["strategy"], value).parameters() if "strategy" in info.data else value

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
        if self.target_accuracy is not None and self.evaluation is None:
            raise ValueError("target_accuracy (percent of the held-out set) needs an evaluation")
        if self.late_rounds and self.quorum is None:
            raise ValueError(f"strategy {self.strategy!r} needs quorum: the updates at which a round ends")
        for direction, name in (("up_codec", self.up_codec), ("down_codec", self.down_codec)):
            if get_codec(name).is_difference and not self.statistics_batches:
                raise ValueError(
                    f"{direction} {name!r} writes differences, which running statistics do not follow; "
                    "set statistics_batches (20 is usual)"
                )
        spec = self.spec
        if spec.residual is not None:
            raise SpecError(f"model {spec.name!r} is a residual network, which a fleet cannot merge yet. Take a chain")
        if spec.classes != len(self.classes):
            raise SpecError(f"the model tells {spec.classes} classes apart, but the job names {len(self.classes)}")
        if spec.input_shape != tuple(self.input_shape):
            raise SpecError(
                f"the model takes samples of shape {list(spec.input_shape)}, but input_shape is {self.input_shape}"
            )
        return self

    @property
    def spec(self) -> ModelSpec:
        """The network."""
        if self.model.zoo is None:
            return ModelSpec.from_dict(self.model.spec)
        fitted = {"input_shape": list(self.input_shape), "classes": len(self.classes)}
        return build(self.model.zoo, **{**fitted, **self.model.params})

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
        """Canonical JSON: two jobs are the same when their texts are."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


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
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'job'}: {item['msg']} (got {item['input']!r:.80})"
            for item in error.errors()
        )
        raise InvalidJobError(f"the job is not valid: {problems}") from error
    except BitfleetError as error:
        raise InvalidJobError(f"the job is not valid: {error}") from error


def load_job(path: Path) -> JobConfig:
    """Read a job file, TOML when its name ends in ``.toml`` and JSON otherwise.

    Raises:
      ConfigurationError: the file cannot be read or parsed.
      InvalidJobError: the job in it is not valid.
    """
    try:
        text = path.read_text(encoding="utf-8")
        value = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot read the job file {path}: {error}") from error
    try:
        return parse_job(value)
    except InvalidJobError as error:
        raise InvalidJobError(f"{path}: {error}") from error

"""The parts of a job: its network, where it starts, on what it is evaluated."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["EvaluationChoice", "JobPart", "ModelChoice", "StartChoice"]


class JobPart(BaseModel):
    """A part of a job: exactly the keys that it has, of exactly their types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    added: ClassVar[frozenset[str]] = frozenset()
    """Fields that came after schema 0013, each with a default: older versions may read a job that does not use them."""

    def unused(self) -> dict[str, Any]:
        """Name the added fields that are at their defaults, here and in parts of this, as ``model_dump`` excludes."""
        found: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name in self.added and value == field.get_default(call_default_factory=True):
                found[name] = True
            elif isinstance(value, JobPart) and (inner := value.unused()):
                found[name] = inner
        return found


class ModelChoice(JobPart):
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


class EvaluationChoice(JobPart):
    """The held-out set on which the coordinator evaluates every committed version: the test split of a data set."""

    dataset: str | None = None
    data: str | None = None


class StartChoice(JobPart):
    """Where the model starts: a version of a model that is here, or a checkpoint that the coordinator can read."""

    model: str | None = None
    version: int | None = Field(default=None, ge=0)
    checkpoint: str | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.model is None) == (self.checkpoint is None) or (self.model is None) != (self.version is None):
            raise ValueError('exactly one of {"model": job id, "version": number} and {"checkpoint": path} is required')
        return self

"""A job's input_range: what devices' real numbers become."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from bnncore.data import InputRange
from bnncore.errors import DataError


class InputRangeChoice(BaseModel):
    """What of devices' real numbers becomes 0 and what 255: of each channel, or one value for all."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    low: list[float]
    high: list[float]

    @property
    def range(self) -> InputRange:
        """The range itself."""
        return InputRange(tuple(self.low), tuple(self.high))

    @model_validator(mode="after")
    def _valid(self) -> Self:
        try:
            self.range  # noqa: B018 - it checks itself
        except DataError as error:
            raise ValueError(str(error)) from error
        return self

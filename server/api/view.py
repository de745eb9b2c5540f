"""What all JSON objects of the REST API have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class View(BaseModel):
    """An object of an answer; what stands below a field in its class describes it in the API's description too."""

    model_config = ConfigDict(use_attribute_docstrings=True)

"""Numbers of rounds and versions, as requests may name them: those that every database can hold."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query

LARGEST_NUMBER = 2**31 - 1

Number = Annotated[int, Path(ge=0, le=LARGEST_NUMBER)]
"""In a path."""

QueryNumber = Annotated[int, Query(ge=0, le=LARGEST_NUMBER)]
"""In a query."""

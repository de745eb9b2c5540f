"""Database rows as records."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import RowMapping

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Record = TypeVar("_Record", bound="DataclassInstance")


def record_of(kind: type[_Record], row: RowMapping) -> _Record:
    """Build a record from its row; JSON arrays become tuples."""
    values = {field.name: row[field.name] for field in fields(kind)}
    plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return kind(**plain)

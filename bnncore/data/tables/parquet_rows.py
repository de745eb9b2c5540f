"""Reading Parquet, one batch of a row group at a time, with pyarrow: in the preparation process only."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bnncore.data.tables.rows import Rows, Table, label_column, rows_at_once
from bnncore.errors import DataError

__all__ = ["read_parquet"]


def read_parquet(path: Path) -> Table:
    """Read a Parquet file: columns of numbers, and the label in ``label`` or the last one.

    Raises:
      DataError: it cannot be read, a column holds something else, or pyarrow is missing.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise DataError("Parquet is read by pyarrow, which is missing: pip install 'bitfleet[parquet]'")
    import pyarrow as arrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        schema = file.schema_arrow
    except (OSError, arrow.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}. Is it a Parquet file, and complete?") from error
    names = list(schema.names)
    if len(names) < 2 or len(set(names)) != len(names):
        raise DataError(f"{path} must have columns of numbers and one of labels, got {', '.join(names) or 'none':.200}")
    label = label_column(names)
    for position, column in enumerate(schema):
        kind = column.type
        is_number = arrow.types.is_integer(kind) or arrow.types.is_floating(kind) or arrow.types.is_boolean(kind)
        if position != label and not is_number:
            raise DataError(f"{path}, column {column.name!r} must hold numbers, got {kind}")
    columns = tuple(name for position, name in enumerate(names) if position != label)
    return Table(columns, (len(columns),), _blocks(path, file, columns, names[label]))


def _blocks(path: Path, file: Any, columns: tuple[str, ...], label: str) -> Iterator[Rows]:
    import pyarrow as arrow

    row = 0
    try:
        for batch in file.iter_batches(batch_size=rows_at_once(len(columns))):
            values = np.empty((batch.num_rows, len(columns)), np.float64)
            for position, name in enumerate(columns):
                column = batch.column(name).cast(arrow.float64(), safe=False)
                values[:, position] = column.to_numpy(zero_copy_only=False)  # what is missing becomes NaN
            labels = batch.column(label).to_pylist()
            places = [f"row {row + position}" for position in range(batch.num_rows)]
            row += batch.num_rows
            given = [position for position, value in enumerate(labels) if value not in (None, "")]
            lacking = [places[position] for position, value in enumerate(labels) if value in (None, "")]
            yield Rows(
                values[given],
                [str(labels[position]) for position in given],
                [places[position] for position in given],
                [f"{place} has no label" for place in lacking],
            )
    except (OSError, arrow.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}. Is the file complete?") from error

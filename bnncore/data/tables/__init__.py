"""Data sets ``csv``, ``npz`` and ``parquet``: rows of real numbers, each with a label.

In a data folder lie ``train.csv`` and ``test.csv`` (or ``val``, ``validation``), or any number of other ``*.csv``: one
row in ten is the test split then, chosen by its content, so that it stays there when others are added. So with ``.npz``
and ``.parquet``. A row that cannot be read is left out and counted (``Dataset.broken``).
"""

from __future__ import annotations

from bnncore.data.tables.opening import open_table, own_range, survey_table
from bnncore.data.tables.sources import TABLE_KINDS, has_tables

__all__ = ["TABLE_KINDS", "has_tables", "open_table", "own_range", "survey_table"]

"""Data sets: opened by name, streamed from the disk, split over devices.

``open_dataset`` is the door; ``open_for_job`` opens in the form that a job's network reads.
"""

from __future__ import annotations

from bnncore.data.dataset import Dataset, RowSource
from bnncore.data.idx import Split, write_idx
from bnncore.data.input_range import InputRange
from bnncore.data.opening import DATASETS, DataSurvey, open_dataset, open_for_job, survey_data
from bnncore.data.partition import dirichlet_shards
from bnncore.data.writer import SampleWriter

__all__ = [
    "DATASETS",
    "DataSurvey",
    "Dataset",
    "InputRange",
    "RowSource",
    "SampleWriter",
    "Split",
    "dirichlet_shards",
    "open_dataset",
    "open_for_job",
    "survey_data",
    "write_idx",
]

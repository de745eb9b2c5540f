"""What a device computes in a federation: local training, without wire, process or folder.

The device's trainer and the simulator run this same code.
"""

from bnncore.federated.local import (
    EngineShelf,
    LocalTask,
    LocalTraining,
    LocalUpdate,
    labels_in_job,
    load_model,
    run_steps,
    take_statistics,
    train_locally,
)
from bnncore.federated.local_state import LocalState
from bnncore.federated.summed import SummedUpdates
from bnncore.federated.validation import LocalScore

__all__ = [
    "EngineShelf",
    "LocalScore",
    "LocalState",
    "LocalTask",
    "LocalTraining",
    "LocalUpdate",
    "SummedUpdates",
    "labels_in_job",
    "load_model",
    "run_steps",
    "take_statistics",
    "train_locally",
]

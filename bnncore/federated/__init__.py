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

__all__ = [
    "EngineShelf",
    "LocalTask",
    "LocalTraining",
    "LocalUpdate",
    "labels_in_job",
    "load_model",
    "run_steps",
    "take_statistics",
    "train_locally",
]

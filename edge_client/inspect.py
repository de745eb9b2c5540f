"""The child that looks at the device's data once, before the agent connects: ``python -m edge_client.inspect``.

Prints one event: what the agent tells the coordinator about this device (counts and names, never a sample), or the
error that the owner has to mend. It is a process of its own because reading data needs NumPy and the agent has none.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

import bnncore
from bnncore.data import open_dataset
from bnncore.engine import isa_selected
from bnncore.errors import BitfleetError
from edge_client.child import EventWriter, bind_to_parent, child_parser

__all__ = ["main", "survey"]


def survey(name: str | None, root: Path | None) -> dict[str, Any]:
    """Describe the device.

    Args:
      name: the data set's layout; None: detected.
      root: the data folder; None: the data set's own place.

    Returns:
      ``classes``, ``input_shape``, ``num_examples`` of the training split; ``isa``, ``machine``, ``version``.

    Raises:
      DataError: the data are missing or damaged.
    """
    with open_dataset(name, root, split="train") as dataset:
        return {
            "classes": list(dataset.classes),
            "input_shape": list(dataset.input_shape),
            "num_examples": dataset.num_examples,
            "isa": isa_selected(),
            "machine": platform.machine(),
            "version": bnncore.__version__,
        }


def main(argv: list[str] | None = None) -> int:
    """Print the survey, or the error."""
    parser = child_parser("edge_client.inspect", __doc__)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--dataset", default=None)
    arguments = parser.parse_args(argv)
    bind_to_parent(arguments.parent)
    events = EventWriter()
    try:
        event = survey(arguments.dataset, arguments.data)
    except BitfleetError as error:
        event = {"error": str(error)}
    events.write(event)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The child that looks at the device's data: ``python -m edge_client.inspect``.

Prints one event: what the agent tells the coordinator about this device (counts and names, never a sample), or the
error that the owner has to mend, and the signature of what was looked at. Told the signature of the last look, it reads
nothing while that holds. It is a process of its own because reading data needs NumPy and the agent has none.
"""

from __future__ import annotations

import platform
import sys
import time
from pathlib import Path
from typing import Any

from bnncore.errors import BitfleetError
from edge_client.child import EventWriter, bind_to_parent, child_parser
from edge_client.data_signature import data_signature, watched_folder

__all__ = ["main", "survey"]

SETTLE_S = 2.0
"""Data that do not change for so long are not being written."""


def survey(name: str | None, root: Path | None) -> dict[str, Any]:
    """Describe the device.

    Args:
      name: the data set's layout; None: detected.
      root: the data folder; None: the data set's own place.

    Returns:
      What ``bnncore.data.DataSurvey`` says of the training split, but its name; ``isa``, ``machine``, ``version``.

    Raises:
      DataError: the data are missing or damaged.
    """
    import bnncore  # these bring NumPy, which a look at an unchanged folder does without
    from bnncore.data import survey_data
    from bnncore.engine import isa_selected

    data = survey_data(name, root)
    return {
        "classes": list(data.classes),
        "input_shape": list(data.input_shape),
        "num_examples": data.num_examples,
        "any_image_shape": data.any_image_shape,
        "needs_input_range": data.needs_input_range,
        "isa": isa_selected(),
        "machine": platform.machine(),
        "version": bnncore.__version__,
    }


def main(argv: list[str] | None = None) -> int:
    """Print the survey, or the error."""
    parser = child_parser("edge_client.inspect", __doc__)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--dataset", default=None)
    parser.add_argument("--known", default=None, metavar="SIGNATURE", help="of the last look")
    arguments = parser.parse_args(argv)
    bind_to_parent(arguments.parent)
    events = EventWriter()
    folder = watched_folder(arguments.data)
    signature = data_signature(folder)
    if arguments.known is not None and (signature == arguments.known or not _stands_still(folder, signature)):
        events.write({"signature": arguments.known})
        return 0
    try:
        event = survey(arguments.dataset, arguments.data)
    except BitfleetError as error:
        event = {"error": str(error)}
    events.write({**event, "signature": signature})
    return 0


def _stands_still(folder: Path | None, signature: str) -> bool:
    """Say whether nobody is writing: what is half written is left for the next look."""
    time.sleep(SETTLE_S)
    return data_signature(folder) == signature


if __name__ == "__main__":
    sys.exit(main())

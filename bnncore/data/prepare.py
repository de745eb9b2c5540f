"""The process that prepares a data set: ``python -m bnncore.data.prepare NAME SPLIT ROOT FOLDER [OPTION ...]``.

It prepares one split of the data set in ROOT: in FOLDER, or in a place within it that it prints as a JSON string. Where
it takes long it prints lines "done total" on standard output. On a mistake it prints the reason on standard error and
ends with exit code 3.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path

from bnncore.data.cache import cache_error
from bnncore.data.cifar10 import prepare_cifar10
from bnncore.data.har import prepare_har
from bnncore.data.images import prepare_images
from bnncore.data.tables import TABLE_KINDS
from bnncore.data.tables.opening import prepare_table
from bnncore.errors import BitfleetError

__all__ = ["PREPARERS", "main"]


def _report(done: int, total: int) -> None:
    print(done, total, flush=True)


PREPARERS: dict[str, Callable[..., Path | None]] = {
    "cifar10": prepare_cifar10,
    "har": prepare_har,
    "images": functools.partial(prepare_images, on_part=_report),
    **{kind: functools.partial(prepare_table, kind=kind) for kind in TABLE_KINDS},
}
"""By name of the data set: prepare one split of a data folder; returns where, if not in the folder given."""


def main(argv: list[str]) -> int:
    """Prepare one split.

    Args:
      argv: NAME, SPLIT (train or test), ROOT, FOLDER and the options of the preparer.

    Returns:
      The exit code.
    """
    name, split, root, folder, *options = argv
    try:
        try:
            place = PREPARERS[name](Path(root), "train" if split == "train" else "test", Path(folder), *options)
            if place is not None:
                print(json.dumps(str(place)), flush=True)
        except OSError as error:
            raise cache_error(Path(root), error) from error
    except BitfleetError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

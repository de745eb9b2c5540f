"""Having a data set prepared by a short-lived process, so that what it takes is gone before training starts."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bnncore.data.cache import cached_set
from bnncore.data.idx import Split, find_images
from bnncore.errors import DataError

__all__ = ["prepared"]

_log = logging.getLogger(__name__)


def prepared(name: str, split: Split, root: Path, sources: Sequence[Path]) -> Path:
    """Give the idx folder in the cache that holds one split, after making it when it is not there.

    The folder's name changes when a source does. It is made by ``python -m bnncore.data.prepare``.

    Args:
      name: a key of ``bnncore.data.prepare.PREPARERS``.
      split: which one.
      root: the data folder.
      sources: the files that it is made from.

    Raises:
      DataError: a source is damaged or the cache cannot be written, as that process says; or it was killed.
    """
    folder = cached_set(f"{name}-{split}", sources)
    if find_images(folder, split) is not None:  # written last
        return folder
    _log.info("preparing %s (%s): once, some seconds to a minute, into %s", name, split, folder)
    command = [sys.executable, "-P", "-m", "bnncore.data.prepare", name, split, str(root), str(folder)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode < 0:
        raise DataError(
            f"preparing {name} ({split}) in {folder} was ended by signal {-done.returncode}. "
            "It takes up to 100 MiB: free some memory, or prepare it on another machine and copy the cache folder"
        )
    if done.returncode != 0:
        raise DataError(done.stderr.decode(errors="replace").strip() or f"preparing {name} ({split}) failed")
    return folder

"""Having a data set prepared by a short-lived process, so that what it takes is gone before training starts."""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bnncore.data.cache import cached_set
from bnncore.data.idx import Split, find_images
from bnncore.errors import DataError

__all__ = ["prepare", "prepared"]

_log = logging.getLogger(__name__)


def prepared(name: str, split: Split, root: Path, sources: Sequence[Path]) -> Path:
    """Give the idx folder in the cache that holds one split, after making it when it is not there.

    The folder's name changes when a source does.

    Args:
      name: a key of ``bnncore.data.prepare.PREPARERS``.
      split: which one.
      root: the data folder.
      sources: the files that it is made from.

    Raises:
      DataError: as ``prepare``.
    """
    folder = cached_set(f"{name}-{split}", sources)
    if find_images(folder, split) is None:  # written last
        prepare(name, split, root, folder)
    return folder


def prepare(name: str, split: Split, root: Path, folder: Path, *, options: Sequence[str] = ()) -> Path:
    """Have a process of its own (``python -m bnncore.data.prepare``) prepare one split.

    Args:
      name: a key of ``bnncore.data.prepare.PREPARERS``.
      split: which one.
      root: the data folder.
      folder: where to, in the cache.
      options: what else the preparer is told.

    Returns:
      Where it is, which may lie within ``folder``.

    Raises:
      DataError: a source is damaged or the cache cannot be written, as that process says; or it was killed.
    """
    _log.info("preparing %s (%s): once, some seconds to minutes, into %s", name, split, folder)
    command = [sys.executable, "-P", "-m", "bnncore.data.prepare", name, split, str(root), str(folder), *options]
    with tempfile.TemporaryFile() as reasons:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=reasons)
        try:
            place = _show_progress(process, f"preparing {name} ({split})")
            returncode = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        reasons.seek(0)
        reason = reasons.read().decode(errors="replace").strip()
    if returncode < 0:
        raise DataError(
            f"preparing {name} ({split}) in {folder} was ended by signal {-returncode}. "
            "It takes up to 100 MiB: free some memory, or prepare it on another machine and copy the cache folder"
        )
    if returncode != 0:
        raise DataError(reason or f"preparing {name} ({split}) failed")
    return folder if place is None else Path(place)


def _show_progress(process: subprocess.Popen[bytes], title: str) -> str | None:
    """Draw a bar from the lines "done total" that a preparer prints, until it ends; give the place that it names."""
    assert process.stdout is not None
    place = None
    with process.stdout, contextlib.ExitStack() as stack:
        bar = None
        for line in process.stdout:
            if line.startswith(b'"'):
                place = json.loads(line)
                continue
            done, total = map(int, line.split())
            if bar is None:
                from tqdm import tqdm

                bar = stack.enter_context(tqdm(desc=title, total=total, leave=False, disable=not sys.stderr.isatty()))
            bar.update(done - bar.n)
    return place

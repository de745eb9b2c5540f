"""Where results go: files that are checked before the work starts, JSON, and numbers for people."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bnncore.durable import replace_file
from bnncore.errors import ConfigurationError
from bnncore.processors import oversubscription

__all__ = [
    "check_destination",
    "format_bytes",
    "rss_peak_bytes",
    "say",
    "testing_bar",
    "warn_about_threads",
    "write_json",
]

_JSON_BYTES = 1 << 16
"""Space that is asked for before a run whose JSON is not known yet."""


def check_destination(path: str | None, option: str, num_bytes: int = _JSON_BYTES) -> None:
    """Make sure that a result can be written before hours are spent on it.

    A file of the expected size is made beside the destination and removed again, which finds a missing folder, missing
    rights and a full disk alike.

    Args:
      path: the destination; None and ``-`` need no check.
      option: the option it came from, for the message.
      num_bytes: expected size.

    Raises:
      ConfigurationError: it could not be written; the message says why.
    """
    if path is None or path == "-":
        return
    try:
        if Path(path).is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        if _is_device(path):
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
            return
        probe = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.probe")
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            os.posix_fallocate(descriptor, 0, num_bytes)
        finally:
            os.close(descriptor)
            probe.unlink()
    except OSError as error:
        raise _cannot_write(path, option, error) from error


def write_json(result: dict[str, Any], path: str | None) -> None:
    """Write a result as JSON to a file (complete or not at all), a device, or standard output (``-``).

    Raises:
      ConfigurationError: it cannot be written.
    """
    if path is None:
        return
    text = json.dumps(result, indent=2) + "\n"
    try:
        if path == "-":
            sys.stdout.write(text)
        elif _is_device(path):
            with open(path, "w", encoding="utf-8") as device:
                device.write(text)
        else:
            with replace_file(Path(path)) as file:
                file.write(text.encode())
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _cannot_write(path, "--json", error) from error


def say(text: str, json_path: str | None) -> None:
    """Print for people, unless standard output belongs to the JSON."""
    if json_path != "-":
        print(text)


def warn_about_threads(threads: int) -> None:
    """Tell on standard error when there are more threads than processors for them."""
    message = oversubscription(threads)
    if message is not None:
        print(f"warning: {message}", file=sys.stderr)


def _is_device(path: str) -> bool:
    """Say whether a path is something that must be written to, not replaced: /dev/stdout, a pipe."""
    return os.path.exists(path) and not os.path.isfile(path)


def _cannot_write(path: str, option: str, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"{option} {path} cannot be written: {error.strerror or error}. Choose another place")


def format_bytes(count: int) -> str:
    """Write an amount of memory for people: 912 B, 57.1 KiB, 7.41 MiB."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.{2 if count < 10 * size else 1}f} {unit}"
    return f"{count} B"


@contextlib.contextmanager
def testing_bar() -> Iterator[Callable[[int, int], None]]:
    """Show on a terminal how far an evaluation is; gives what ``bnncore.training.evaluate`` calls."""
    from tqdm import tqdm

    with tqdm(desc="testing", unit="sample", leave=False, disable=not sys.stderr.isatty(), delay=0.5) as bar:

        def on_batch(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield on_batch


def rss_peak_bytes() -> int:
    """The most memory that this process had resident so far: VmHWM.

    ``getrusage`` would not do: its ``ru_maxrss`` is inherited through exec, so it can be the parent's peak.

    Returns:
      Bytes; 0 where /proc does not say.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0

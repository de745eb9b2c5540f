"""``bitfleet-server backup`` and ``restore``: a whole coordinator in one file."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from bnncore.durable import replace_file
from bnncore.errors import ConfigurationError
from server.settings import Settings, build_settings
from server.storage.refusal import StoreAwayError

if TYPE_CHECKING:
    from tqdm import tqdm

_BACKUP = """\
Write a coordinator's database, payloads and identity to a file, while it runs or not.

The file holds the key of the fleet's authority: keep it locked away, or encrypt it on its way.
"""
_BACKUP_EXAMPLES = """\
examples:
  bitfleet-server backup --state /var/lib/bitfleet /backups/fleet-$(date +%F).tar
  bitfleet-server backup - | age --recipient age1... > fleet.tar.age
  bitfleet-server backup --database postgresql+psycopg://... --blobs s3://models/fleet --identity /identity fleet.tar
"""
_RESTORE = """\
Put a backup back, into an empty state folder; with --database, into an empty database of either kind.

What was decided after the backup was made is forgotten: rounds are played again, and a device that was revoked since
is to be revoked again. Devices go on by themselves.
"""


def add_backup(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both subcommands to the command line."""
    plain = argparse.RawDescriptionHelpFormatter
    backup = commands.add_parser(
        "backup", help="write a coordinator to a file, while it runs", description=_BACKUP, epilog=_BACKUP_EXAMPLES,
        formatter_class=plain,
    )  # fmt: skip
    backup.set_defaults(command=run_backup)
    backup.add_argument("file", help="to write; - = standard output")
    restore = commands.add_parser("restore", help="put a backup back", description=_RESTORE, formatter_class=plain)
    restore.set_defaults(command=run_restore)
    restore.add_argument("file", help="to read; - = standard input")
    for parser in (backup, restore):
        parser.add_argument("--state", metavar="DIR", help="state folder (bitfleet-state)")
        parser.add_argument("--database", metavar="URL", help="SQLAlchemy URL (an SQLite file in the state folder)")
        parser.add_argument(
            "--blobs", metavar="URL", help="object store of the payloads (a folder in the state folder)"
        )
        parser.add_argument("--identity", metavar="DIR", help="folder of the authority that coordinators share")


def run_backup(arguments: argparse.Namespace) -> int:
    """Make a backup; 1 when payloads were damaged, which are not in it."""
    from server.backup import make_backup

    settings = _settings(arguments)
    with (
        _errors_of_disks(arguments.file),
        _writing(arguments.file) as file,
        _bar("backup") as bar,
    ):

        def show(written: int, total: int) -> None:
            bar.total = total
            bar.update(written - bar.n)

        head = make_backup(settings, file, show)
    where = "the backup" if arguments.file == "-" else arguments.file
    secret = ", and the authority's key" if head.holds_identity else ""
    print(
        f"bitfleet: {head.tables['jobs']} jobs and {head.payloads} payloads ({head.payload_bytes / 2**20:.1f} MiB) are "
        f"in {where}{secret}",
        file=sys.stderr,
    )
    if head.damaged:
        shown = ", ".join(head.damaged[:5]) + (", ..." if len(head.damaged) > 5 else "")
        print(f"bitfleet: {len(head.damaged)} payloads are missing or damaged: {shown}", file=sys.stderr)
    return int(bool(head.damaged))


def run_restore(arguments: argparse.Namespace) -> int:
    """Put a backup back."""
    from server.backup import restore_backup

    settings = _settings(arguments)
    with (
        _errors_of_disks(arguments.file),
        _reading(arguments.file) as file,
        _bar("restore") as bar,
    ):
        head = restore_backup(file, settings, bar.update)
    print(
        f"bitfleet: {head.tables['jobs']} jobs and {head.payloads} payloads are back in {settings.state}; go on with: "
        f"bitfleet-server serve --state {settings.state}",
        file=sys.stderr,
    )
    return 0


def _settings(arguments: argparse.Namespace) -> Settings:
    names = ("state", "database", "blobs", "identity")
    settings, _ = build_settings({name: getattr(arguments, name) for name in names}, os.environ)
    return settings


def _bar(what: str) -> tqdm[NoReturn]:
    from tqdm import tqdm

    return tqdm(desc=what, unit="B", unit_scale=True, disable=not sys.stderr.isatty(), delay=0.5)


@contextlib.contextmanager
def _writing(name: str) -> Iterator[BinaryIO]:
    """Open what the backup is written to; a file appears when it is whole, for its owner alone."""
    if name == "-":
        if sys.stdout.isatty():
            raise ConfigurationError("a backup is no text for a terminal: redirect it, or name a file")
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    elif Path(name).exists():
        raise ConfigurationError(f"{name} is there already; a backup replaces no file")
    else:
        with replace_file(Path(name), mode=0o600) as file:
            yield file


@contextlib.contextmanager
def _reading(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
    else:
        with open(name, "rb") as file:
            yield file


@contextlib.contextmanager
def _errors_of_disks(name: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except StoreAwayError as error:
        raise ConfigurationError(f"{error.strerror}; try again when it answers") from error
    except OSError as error:
        raise ConfigurationError(f"{'' if name == '-' else name + ': '}{error}") from error

"""A whole coordinator in one file: its database, payloads and identity, taken while it runs, and put back."""

from server.backup.make import make_backup
from server.backup.restore import restore_backup

__all__ = ["make_backup", "restore_backup"]

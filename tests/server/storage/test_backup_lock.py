"""While a backup of an object store is made nothing is deleted from it, and none begins while something is."""

from __future__ import annotations

import threading

from server.storage.backup_lock import while_nothing_is_deleted
from server.storage.sql import open_storage, using_database


def test_deletions_and_backups_keep_out_of_each_others_way(database_url: str) -> None:
    storage = open_storage(database_url)
    happened: list[str] = []

    def make_backup() -> None:
        with using_database(database_url) as engine, while_nothing_is_deleted(engine):
            happened.append("backup")

    with using_database(database_url) as engine, while_nothing_is_deleted(engine):
        with while_nothing_is_deleted(engine), storage.may_delete() as may:  # two backups at once
            assert not may
        with storage.may_delete() as may:
            assert not may
    with storage.may_delete() as may:
        assert may
        backup = threading.Thread(target=make_backup)
        backup.start()
        happened.append("deleted")
    backup.join()
    with storage.may_delete() as may:
        assert may
    storage.close()

    assert happened == ["deleted", "backup"]

"""Old and new versions over one database: who migrates it, who may share it, and who is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, inspect, text

from benchmarks.replicas.versions import FIRST_WITH_A_RULE, Version, check_side_by_side
from bnncore.errors import ConfigurationError
from server.replicas.bus import Bus
from server.replicas.replica import conninfo_of
from server.storage import schema
from server.storage.rows import read_database
from server.storage.schema import alembic_config, bring_up_to_date, newest_revision
from server.storage.sql import open_storage
from tests.patience import LIMIT_S
from tests.server.storage.test_contract import JOB, ROUND
from tests.server.test_cli import serving

NEWER = """\
import sqlalchemy as sa
from alembic import op
revision, down_revision, oldest_reader = "9998", "{head}", "{oldest_reader}"
def upgrade():
    op.create_table("news", sa.Column("key", sa.Integer, primary_key=True))
    op.add_column("jobs", sa.Column("mood", sa.String(8)))
    op.add_column("rounds", sa.Column("weight", sa.Integer, nullable=False, server_default="1"))
"""

OPEN = """\
import sys
from server.storage.sql import open_storage
print("ready", flush=True)
sys.stdin.readline()
open_storage(sys.argv[1]).close()
"""


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    """Of a process of another version, which a test makes up."""
    engine = create_engine(database_url)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def serve_newer(connection: Connection, folder: Path, *, oldest_reader: int) -> None:
    """Bring the database up to date as a newer version of bitfleet does, one that has a migration more."""
    folder /= f"read-from-{oldest_reader}"  # Python does not see that a file was replaced within a second
    folder.mkdir()
    (folder / "9998_newer.py").write_text(
        NEWER.format(head=f"{newest_revision():04d}", oldest_reader=f"{oldest_reader:04d}")
    )
    config = alembic_config(connection)
    versions = Path(config.get_main_option("script_location") or "") / "versions"
    config.set_main_option("version_locations", f"{versions}{os.pathsep}{folder}")
    config.set_main_option("path_separator", "os")
    with connection.begin():
        bring_up_to_date(connection, config)


def test_an_older_version_goes_on_with_a_schema_that_it_may_use(
    database_url: str, connection: Connection, tmp_path: Path
) -> None:
    old = open_storage(database_url)
    old.add_job(JOB)
    serve_newer(connection, tmp_path, oldest_reader=newest_revision())
    old.save_round(ROUND)
    old.close()

    restarted = open_storage(database_url)

    restarted.add_job(replace(JOB, job_id="job-2"))
    restarted.save_round(replace(ROUND, round_number=2))
    assert [job.job_id for job in restarted.list_jobs()] == ["job-1", "job-2"]
    assert [round_.round_number for round_ in restarted.list_rounds("job-1")] == [1, 2]
    restarted.close()
    assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == "9998"
    with pytest.raises(
        ConfigurationError, match=r"has schema 9998, .* Use the version that serves it"
    ):  # not by halves
        read_database(database_url).__enter__()


def test_an_older_version_is_refused_where_what_it_needs_may_be_gone(
    database_url: str, connection: Connection, tmp_path: Path
) -> None:
    serve_newer(connection, tmp_path, oldest_reader=newest_revision() + 1)

    with pytest.raises(ConfigurationError, match=r"has schema 9998, .* knows up to \d{4}. Upgrade this coordinator"):
        open_storage(database_url)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_migration_does_not_wait_for_a_table_while_others_wait_for_it(
    database_url: str, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_LOCK_TIMEOUT_S", 0.1)
    open_storage(database_url).close()
    with read_database(database_url) as reading:
        list(reading.rows("jobs"))  # as a backup does

        with pytest.raises(ConfigurationError, match=r"a table was in use for 0\.1 s\. Nothing was changed"):
            serve_newer(connection, tmp_path, oldest_reader=newest_revision())

    with read_database(database_url) as reading:
        assert reading.schema == f"{newest_revision():04d}"


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_coordinator_of_today_serves_a_schema_of_tomorrow(
    database_url: str, connection: Connection, tmp_path: Path
) -> None:
    serve_newer(connection, tmp_path, oldest_reader=newest_revision())

    with serving(tmp_path / "state", "--database", database_url) as server:
        ready = httpx.get(server.http + "/readyz", timeout=LIMIT_S)
        code, log = server.end()

    assert (ready.status_code, code) == (200, 0), log
    assert "Traceback" not in log


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_nothing_is_taken_away_from_a_version_that_is_at_work(
    database_url: str, connection: Connection, tmp_path: Path
) -> None:
    head = newest_revision()
    open_storage(database_url).close()
    async with Bus("old", conninfo_of(database_url)):
        with pytest.raises(ConfigurationError, match=rf"are at work that know the schema up to {head:04d} only"):
            serve_newer(connection, tmp_path, oldest_reader=head + 1)
        serve_newer(connection, tmp_path, oldest_reader=head)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_processes_that_start_at_once_make_one_schema(database_url: str) -> None:
    command_line = [sys.executable, "-c", OPEN, database_url]
    processes = [
        subprocess.Popen(command_line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    errors = [process.communicate()[1] for process in processes]

    assert [process.returncode for process in processes] == [0, 0], errors
    with read_database(database_url) as reading:
        assert reading.schema == f"{newest_revision():04d}"


Shape = dict[str, dict[str, tuple[str, bool, bool]]]


def shape_at(config: Config, connection: Connection, revision: str) -> Shape:
    """Return the type of each column of each table, whether it may be null, and whether it may be left out."""
    command.upgrade(config, revision)
    inspector = inspect(connection)
    return {
        table: {
            column["name"]: (
                str(column["type"]),
                column["nullable"],
                column["nullable"] or column["default"] is not None,
            )
            for column in inspector.get_columns(table)
        }
        for table in inspector.get_table_names()
    }


def harms(old: Shape, new: Shape) -> list[str]:
    """Say what a version that knows the old schema cannot cope with in the new one."""
    found = [table for table in old if table not in new]
    for table in old.keys() & new.keys():
        before, after = old[table], new[table]
        found += [f"{table}.{name}" for name, kind in before.items() if after.get(name) != kind]
        found += [f"{table}.{name}" for name in after.keys() - before.keys() if not after[name][2]]
    return sorted(found)


def test_every_migration_leaves_a_schema_that_its_oldest_reader_can_use(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'empty.db'}")
    with engine.begin() as connection:
        config = alembic_config(connection)
        scripts = list(ScriptDirectory.from_config(config).walk_revisions())[::-1]
        shapes = {script.revision: shape_at(config, connection, script.revision) for script in scripts}
    engine.dispose()

    readers = {script.revision: getattr(script.module, "oldest_reader", None) for script in scripts}
    named = {revision: reader for revision, reader in readers.items() if int(revision) >= FIRST_WITH_A_RULE}
    found = {revision: harms(shapes[str(reader)], shapes[revision]) for revision, reader in named.items()}
    assert not any(found.values()), found
    assert "updates.training_seconds" not in harms(shapes["0001"], shapes["0002"])
    assert harms(shapes["0002"], shapes["0001"])  # what is gone is noticed


def test_the_benchmark_of_upgrades_knows_which_versions_share_a_schema(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'empty.db'}")
    with engine.begin() as connection:
        bring_up_to_date(connection)
        reader = int(connection.execute(text("SELECT oldest_reader FROM schema_info")).scalar_one())
    engine.dispose()

    new = Version.of_this_checkout()

    assert (new.schema, new.oldest_reader) == (newest_revision(), reader)
    check_side_by_side(replace(new, schema=reader), new)
    with pytest.raises(ConfigurationError, match="by the rule they do not work side by side"):
        check_side_by_side(replace(new, schema=reader - 1), new)

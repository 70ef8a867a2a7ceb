"""The database of the service: complete migrations or none, and clear errors."""

import sqlite3
import threading
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from cluster.service.data.database import MIGRATIONS, Database, connect, make_engine
from cluster.service.data.tables import metadata
from cluster.service.errors import DatabaseUnavailableError
from cluster.service.queue.queue import Queue
from cluster.service.settings import Settings, file_url
from mint.core.errors import MintError
from tests.worlds.first_tables import create_first_tables
from tests.worlds.service_world import ANN, World, check_laws, model_request, submit


def _scripts() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


REVISIONS = [script.revision for script in ScriptDirectory.from_config(_scripts()).walk_revisions()][::-1]


def _empty(url: str) -> Database:
    """A database without tables."""
    return Database(make_engine(url))


def test_the_migrations_make_the_tables_of_the_code(database_url: str) -> None:
    database = connect(database_url)
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
    database.close()


def test_every_older_database_is_migrated(database_url: str) -> None:
    for number, revision in enumerate(["base", *REVISIONS]):
        empty = _empty(database_url)
        with empty.write() as connection:
            config = _scripts()
            config.attributes["connection"] = connection
            if number:
                create_first_tables(Operations(MigrationContext.configure(connection)))
                command.stamp(config, "0001")
                command.upgrade(config, revision)
        empty.close()
        database = connect(database_url)
        with database.read() as connection:
            assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        with database.write() as connection:
            for table in [*reversed(metadata.sorted_tables)]:
                table.drop(connection)
            connection.execute(text("DROP TABLE alembic_version"))
        database.close()


def test_connecting_again_changes_nothing(database_url: str) -> None:
    database = connect(database_url)
    job, _ = submit(Queue(database), model_request(), ANN)
    database.close()
    again = connect(database_url)
    assert Queue(again).get(job.id) == job
    again.close()


def test_the_database_of_a_newer_mint_is_refused_unchanged(database_url: str) -> None:
    database = connect(database_url)
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(
        MintError, match=f"is at revision 9999, this mint knows revisions up to {REVISIONS[-1]}; needed"
    ):
        connect(database_url)
    with database.read() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == ["9999"]
    database.close()


def test_a_migration_that_breaks_leaves_nothing_behind(database_url: str) -> None:
    empty = _empty(database_url)
    with empty.write() as connection:
        connection.execute(text("CREATE TABLE identities (whose INTEGER)"))  # the last table of the migrations
    with pytest.raises(Exception, match="identities"):
        connect(database_url)
    with empty.read() as connection:
        assert inspect(connection).get_table_names() == ["identities"]
    empty.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("secret", "not the address of a database"),
        ("mysql://me:secret@here/x", "not the address of a database"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite:////nowhere/at/all.db", "unable to open"),
        ("postgresql://me:secret@127.0.0.1:1/x", "refused"),
    ],
)
def test_the_error_for_a_bad_address_has_a_cure_and_no_password(url: str, message: str) -> None:
    with pytest.raises(MintError, match=message) as refused:
        connect(url)
    assert "needed" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_file_that_is_no_database_is_refused_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_bytes(b"Dear all,\n" * 500)
    with pytest.raises(MintError, match="not a database"):
        connect(file_url(path))
    assert path.read_bytes() == b"Dear all,\n" * 500


@pytest.mark.parametrize("name", ["plain", "a b", "100%", "50%25", "ü", "a#b", "a+b&c=d", "what?", "?x=1"])
def test_a_database_path_may_have_any_characters(name: str, tmp_path: Path) -> None:
    path = tmp_path / name / "service.db"
    path.parent.mkdir()
    connect(Settings(path.parent).database_url).close()
    assert path.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_a_transaction_that_raises_is_rolled_back(database: Database) -> None:
    world = World(database)
    job = world.submit()
    with pytest.raises(KeyError), database.write() as connection:
        connection.execute(text("UPDATE jobs SET state = 'lost'"))
        raise KeyError
    assert world.queue.get(job.id).state == "queued"


def test_a_reader_sees_one_snapshot_without_waiting(database: Database) -> None:
    world = World(database)
    count = text("SELECT count(*) FROM jobs")
    with database.read() as reading:
        assert reading.execute(count).scalar_one() == 0
        world.submit()
        assert reading.execute(count).scalar_one() == 0
    with database.write() as writing:
        writing.execute(text("UPDATE jobs SET state = 'lost'"))
        assert world.queue.find()[0].state == "queued"
        writing.rollback()


def test_a_writer_sees_the_writes_of_the_writer_before(database_url: str) -> None:
    first, second = connect(database_url), connect(database_url)
    order: list[str] = []

    def write() -> None:
        started.set()
        with second.write() as connection:
            order.append("second")
            counts.append(connection.execute(text("SELECT count(*) FROM people")).scalar_one())

    started, counts = threading.Event(), list[int]()
    thread = threading.Thread(target=write)
    with first.write() as connection:
        thread.start()
        started.wait()
        connection.execute(text("INSERT INTO people (name, served) VALUES ('ann', 0)"))
        order.append("first")
    thread.join()
    assert (order, counts) == (["first", "second"], [1])
    first.close()
    second.close()


def test_a_new_file_that_another_server_writes_is_awaited(tmp_path: Path) -> None:
    path = tmp_path / "service.db"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")  # before the file has its journal mode
    end = threading.Timer(0.1, other.rollback)
    end.start()
    connect(file_url(path)).close()
    end.join()
    other.close()


def test_the_database_itself_enforces_one_job_per_request_and_per_analysis(world: World) -> None:
    world.submit(budget="1GB")
    world.submit(budget="2GB")
    world.claim()
    for change in ("lease = 'x', lease_until = 1", "wish_key = 'x'"):
        with pytest.raises(Exception, match=r"(?i)unique"), world.database.write() as connection:
            connection.execute(text(f"UPDATE jobs SET {change}"))
    check_laws(world.database)


def test_a_full_disk_is_reported_and_reads_still_work(tmp_path: Path) -> None:
    world = World(connect(file_url(tmp_path / "service.db")))
    job = world.submit()
    claim = world.claim()
    with world.database.write() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(DatabaseUnavailableError, match="full"):
        for _ in range(100):
            world.queue.emit(claim, "note", {"text": "long " * 1000})
    assert world.queue.get(job.id).state == "inventory"
    check_laws(world.database)
    world.database.close()


def test_a_change_of_the_database_state_is_reported_once(tmp_path: Path) -> None:
    changes: list[tuple[str, str]] = []
    world = World(connect(file_url(tmp_path / "service.db"), lambda access, reason: changes.append((access, reason))))
    world.submit()
    claim = world.claim()

    def pages(count: int) -> None:
        with world.database.read() as connection:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {count}")

    def note() -> None:
        world.queue.emit(claim, "note", {"text": "long " * 2000})

    pages(1)  # SQLite raises this to the current number
    for _ in range(3):
        with pytest.raises(DatabaseUnavailableError):
            note()
        world.queue.counts()  # reads still work
    assert changes == [("written", "database or disk is full")]
    pages(1_000_000)
    for _ in range(3):
        note()
    assert changes[1:] == [("written", "")]
    world.database.close()


def test_a_restarted_server_is_reconnected(postgresql_server: str) -> None:
    world = World(connect(postgresql_server))
    world.queue.counts()
    with world.database.read() as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    other = connect(postgresql_server)
    with other.write() as connection:
        assert connection.execute(text(f"SELECT pg_terminate_backend({pid})")).scalar_one()
    assert world.queue.counts()["queued"] >= 0
    for database in (world.database, other):
        database.close()

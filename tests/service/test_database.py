"""The database of the service: brought up to date wholly or not at all, and clear about what is wrong with it."""

import threading
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from cluster.service.data.database import MIGRATIONS, Database, connect
from cluster.service.data.tables import metadata
from cluster.service.errors import DatabaseUnavailableError
from cluster.service.queue.queue import Queue
from cluster.service.settings import Settings, file_url
from mint.core.errors import MintError
from tests.worlds.service_world import ANN, World, check_laws, wish


def _scripts() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


REVISIONS = [script.revision for script in ScriptDirectory.from_config(_scripts()).walk_revisions()][::-1]


def _empty(url: str, monkeypatch: pytest.MonkeyPatch) -> Database:
    """A database without tables."""
    with monkeypatch.context() as patched:
        patched.setattr("cluster.service.data.database._migrate", lambda *_: None)
        return connect(url)


def test_the_migrations_make_the_tables_that_the_code_knows(database_url: str) -> None:
    database = connect(database_url)
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
    database.close()


def test_every_older_database_is_brought_up_to_date(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, revision in enumerate(["base", *REVISIONS]):
        empty = _empty(database_url, monkeypatch)
        with empty.write() as connection:
            config = _scripts()
            config.attributes["connection"] = connection
            tables = inspect(connection).get_table_names()
            if number and "alembic_version" not in tables:
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
    job, _ = Queue(database).submit(wish(), ANN)
    database.close()
    again = connect(database_url)
    assert Queue(again).get(job.id) == job
    again.close()


def test_the_database_of_a_newer_mint_is_refused_and_left_alone(database_url: str) -> None:
    database = connect(database_url)
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(MintError, match=f"is at revision 9999, this mint knows those up to {REVISIONS[-1]}; needed"):
        connect(database_url)
    with database.read() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == ["9999"]
    database.close()


def test_a_migration_that_breaks_leaves_nothing_behind(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = _empty(database_url, monkeypatch)
    with empty.write() as connection:
        connection.execute(text("CREATE TABLE identities (whose INTEGER)"))  # the last table that would be made
    with pytest.raises(Exception, match="identities"):
        connect(database_url)
    with empty.read() as connection:
        assert inspect(connection).get_table_names() == ["identities"]
    empty.close()


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("secret", "not the address of a database"),
        ("mysql://me:secret@here/x", "not the address of a database"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite:////nowhere/at/all.db", "unable to open"),
        ("postgresql://me:secret@127.0.0.1:1/x", "refused"),
    ],
)
def test_an_address_that_cannot_be_used_is_answered_with_what_to_do_but_not_with_its_password(
    url: str, found: str
) -> None:
    with pytest.raises(MintError, match=found) as refused:
        connect(url)
    assert "needed" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_bytes(b"Dear all,\n" * 500)
    with pytest.raises(MintError, match="not a database"):
        connect(file_url(path))
    assert path.read_bytes() == b"Dear all,\n" * 500


@pytest.mark.parametrize("name", ["plain", "a b", "100%", "50%25", "ü", "a#b", "a+b&c=d", "what?", "?x=1"])
def test_a_database_is_where_its_path_says_whatever_the_path(name: str, tmp_path: Path) -> None:
    path = tmp_path / name / "service.db"
    path.parent.mkdir()
    connect(Settings(path.parent).database_url).close()
    assert path.exists()
    assert sorted(each.name for each in tmp_path.iterdir()) == [name]


def test_a_transaction_that_raises_is_undone(database: Database) -> None:
    world = World(database)
    job = world.submit()
    with pytest.raises(KeyError), database.write() as connection:
        connection.execute(text("UPDATE jobs SET state = 'lost'"))
        raise KeyError
    assert world.queue.get(job.id).state == "queued"


def test_who_reads_sees_one_moment_and_waits_for_nobody(database: Database) -> None:
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


def test_who_writes_sees_what_the_writer_before_has_written(database_url: str) -> None:
    first, second = connect(database_url), connect(database_url)
    order: list[str] = []

    def write() -> None:
        started.set()
        with second.write() as connection:
            order.append("second")
            found.append(connection.execute(text("SELECT count(*) FROM people")).scalar_one())

    started, found = threading.Event(), list[int]()
    thread = threading.Thread(target=write)
    with first.write() as connection:
        thread.start()
        started.wait()
        connection.execute(text("INSERT INTO people (name, served) VALUES ('ann', 0)"))
        order.append("first")
    thread.join()
    assert (order, found) == (["first", "second"], [1])
    first.close()
    second.close()


def test_what_must_never_be_is_refused_by_the_database_itself(world: World) -> None:
    world.submit(budget="1GB")
    world.submit(budget="2GB")
    world.claim()
    for change in ("lease = 'x', lease_until = 1", "wish_key = 'x'"):
        with pytest.raises(Exception, match=r"(?i)unique"), world.database.write() as connection:
            connection.execute(text(f"UPDATE jobs SET {change}"))
    check_laws(world.database)


def test_a_full_disk_is_said_and_reading_goes_on(tmp_path: Path) -> None:
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


def test_what_becomes_of_a_database_is_told_once_however_many_ask(tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    world = World(connect(file_url(tmp_path / "service.db"), lambda what, why: told.append((what, why))))
    world.submit()
    claim = world.claim()

    def pages(count: int) -> None:
        with world.database.read() as connection:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {count}")

    def note() -> None:
        world.queue.emit(claim, "note", {"text": "long " * 2000})

    pages(1)  # SQLite takes the number of those that there are
    for _ in range(3):
        with pytest.raises(DatabaseUnavailableError):
            note()
        world.queue.counts()  # it can still be read
    assert told == [("written", "database or disk is full")]
    pages(1_000_000)
    for _ in range(3):
        note()
    assert told[1:] == [("written", "")]
    world.database.close()


def test_a_server_that_was_started_again_is_found_again(postgresql_server: str) -> None:
    world = World(connect(postgresql_server))
    world.queue.counts()
    with world.database.read() as connection:
        mine = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    other = connect(postgresql_server)
    with other.write() as connection:
        assert connection.execute(text(f"SELECT pg_terminate_backend({mine})")).scalar_one()
    assert world.queue.counts()["queued"] >= 0
    for database in (world.database, other):
        database.close()

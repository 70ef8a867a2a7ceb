"""The database of the service: SQLite in a file or PostgreSQL, with the same tables and the same promises.

Rules. A transaction that writes is the only one that writes, from its first statement to its end: `BEGIN IMMEDIATE` in
SQLite, an advisory lock in PostgreSQL. So what a writer has read stays true until it commits, on both alike; nothing
deadlocks, since there is one lock; and no transaction has to be tried again. They are short (a few indexed rows), so
one at a time is plenty for a lab. A reading transaction sees one snapshot and waits for nobody (WAL; REPEATABLE READ).
"""

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, InterfaceError, OperationalError, SQLAlchemyError, TimeoutError

from cluster.service.errors import DatabaseUnavailableError
from mint.core.errors import MintError

MIGRATIONS = Path(__file__).parent / "migrations"
_WAIT_SECONDS = 60  # for another writer; far more than a transaction takes, even on a busy machine
_STUCK_SECONDS = 10  # a PostgreSQL session that stops in the middle is ended before leases of others run out
_LOCK = 0x6D696E74  # "mint": the advisory lock of writers


class Database:
    """Where the service keeps what it knows. Made by `connect`; safe to use from many threads.

    `on_change` is told when it can no longer be read or written, and why, and when it can again: then why is empty.
    """

    def __init__(self, engine: Engine, on_change: Callable[[str, str], object] = lambda what, why: None) -> None:
        self._engine = engine
        self._on_change = on_change
        self._trouble = {"read": "", "written": ""}
        self._sqlite = engine.dialect.name == "sqlite"
        self._noting = threading.Lock()
        self._writer = threading.Lock()  # threads of one process take turns without SQLite's polling

    @property
    def place(self) -> str:
        """Where it is, for people: without the password."""
        return self._engine.url.render_as_string(hide_password=True)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database and changes nothing."""
        isolation: dict[str, Any] = {} if self._sqlite else {"isolation_level": "REPEATABLE READ"}
        opened = self._engine.connect
        with self._answering("read"), opened().execution_options(**isolation) as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that nobody else writes beside; it is undone when the block raises."""
        opened, turn = self._engine.connect, self._writer if self._sqlite else nullcontext()
        with (
            self._answering("written"),
            turn,
            opened().execution_options(mint_writes=True) as connection,
            connection.begin(),
        ):
            if not self._sqlite:
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
            yield connection

    @contextmanager
    def _answering(self, what: str) -> Iterator[None]:
        """What is wrong with the database, and not with what was asked of it, is the user's to mend."""
        try:
            yield
            self._note(what, "")
        except (SQLAlchemyError, sqlite3.Error) as error:
            if not _is_away(error):
                raise
            self._note(what, _first_line(error))
            raise DatabaseUnavailableError(
                f"the database {self.place} cannot be used: {_first_line(error)}; needed one that runs, that may be "
                "written, on a disk with room"
            ) from error

    def _note(self, what: str, why: str) -> None:
        with self._noting:
            is_news = bool(self._trouble[what]) != bool(why)
            self._trouble[what] = why
        if is_news:
            self._on_change(what, why)

    def close(self) -> None:
        """Close every connection that is not in use."""
        self._engine.dispose()


def connect(url: str, on_change: Callable[[str, str], object] = lambda what, why: None) -> Database:
    """The database at `sqlite:///PATH` or `postgresql://USER:PASSWORD@HOST/NAME`, brought up to date.

    Raises `MintError` when it cannot be reached, is of another kind, or was written by a newer mint.
    """
    database = Database(_engine(_parse(url)), on_change)
    try:
        with database.write() as connection:
            _migrate(connection, database.place)
    except BaseException:
        database.close()
        raise
    return database


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = URL.create("")
    if parsed.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise MintError("a database in memory cannot be shared with runners; needed a file, sqlite:///PATH")
        return parsed
    raise MintError("not the address of a database; needed sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME")


def _engine(url: URL) -> Engine:
    if url.drivername == "sqlite":
        engine = create_engine(
            url, pool_size=32, max_overflow=32, connect_args={"timeout": _WAIT_SECONDS}, json_serializer=_json
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    try:
        return create_engine(
            url,
            json_serializer=_json,
            pool_size=8,
            max_overflow=8,
            pool_pre_ping=True,  # a database that was started again is no reason to fail
            isolation_level="READ COMMITTED",  # a writer alone sees, after its lock, all that was committed before
            connect_args={
                "connect_timeout": 10,
                "options": f"-c lock_timeout={_WAIT_SECONDS}s -c idle_in_transaction_session_timeout={_STUCK_SECONDS}s",
            },
        )
    except ModuleNotFoundError as error:
        raise MintError(
            f"{url.render_as_string()} needs the package {error.name}; "
            "install it with: pip install 'mint-mlx[postgres]'"
        ) from None


def _json(value: object) -> str:
    return json.dumps(value, allow_nan=False)  # neither PostgreSQL nor a browser reads NaN


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # the driver begins no transaction of its own: `_begin_sqlite` does
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("mint_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _migrate(connection: Connection, place: str) -> None:
    """Bring the tables up to date, within the transaction of `connection`: wholly or not at all."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    found = set(MigrationContext.configure(connection).get_current_heads())
    if unknown := found - known:
        raise MintError(
            f"the database {place} is at revision {', '.join(sorted(unknown))}, this mint knows those up to "
            f"{scripts.get_current_head()}; needed the mint that wrote it, or a newer one"
        )
    if found != {scripts.get_current_head()}:
        command.upgrade(config, "head")


def _is_away(error: SQLAlchemyError | sqlite3.Error) -> bool:
    if isinstance(error, (OperationalError, InterfaceError, TimeoutError, sqlite3.Error)):
        return True
    denied = getattr(getattr(error, "orig", None), "sqlstate", None) == "42501"  # PostgreSQL: no right to do so
    return denied or type(error) is DatabaseError  # SQLite: the file is something else


def _first_line(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    return next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)

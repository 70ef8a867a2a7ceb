"""The database of the service: SQLite in a file or PostgreSQL, with the same tables and the same guarantees.

Rules. Only one transaction writes at a time, from its first statement to its end: `BEGIN IMMEDIATE` in SQLite, an
advisory lock in PostgreSQL. So rows that a writer has read stay unchanged until it commits, there are no deadlocks
(one lock), and no transaction needs a retry. Transactions are short (a few indexed rows), so one at a time is enough
for a lab. A reading transaction sees one snapshot and waits for no other (WAL; REPEATABLE READ).
"""

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, Row, Select, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, InterfaceError, OperationalError, SQLAlchemyError, TimeoutError
from tenacity import retry, retry_if_exception_message, stop_after_delay, wait_fixed

from cluster.service.data.tables import metadata
from cluster.service.errors import DatabaseUnavailableError
from mint.core.errors import MintError
from mint.core.version import install_command

MIGRATIONS = Path(__file__).parent / "migrations"
_WAIT_SECONDS = 60  # for another writer; far longer than a transaction, even on a busy machine
_RETRY_SECONDS = 0.02
_STUCK_SECONDS = 10  # a stalled PostgreSQL session ends before leases of others run out
_POSTGRESQL = "postgresql+psycopg"
_LOCK = 0x6D696E74  # "mint": the advisory lock of writers


class Database:
    """The database of the service, made by `connect`; safe to use from many threads.

    `on_change` gets "read" or "written" and a reason when that stops working, and an empty reason when it works again.
    """

    def __init__(self, engine: Engine, on_change: Callable[[str, str], object] = lambda access, reason: None) -> None:
        self._engine = engine
        self._on_change = on_change
        self._failures = {"read": "", "written": ""}
        self._sqlite = engine.dialect.name == "sqlite"
        self._failures_lock = threading.Lock()
        self._writer = threading.Lock()  # threads of one process avoid SQLite's polling

    @property
    def url(self) -> str:
        """The address, without the password."""
        return self._engine.url.render_as_string(hide_password=True)

    def read(self) -> AbstractContextManager[Connection]:
        """A read-only transaction on one snapshot."""
        return self._transaction("read", **({} if self._sqlite else {"isolation_level": "REPEATABLE READ"}))

    def rows(self, query: Select[Any]) -> Sequence[Row[Any]]:
        """The rows of one query."""
        with self.read() as connection:
            return connection.execute(query).all()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """The only writing transaction; rolled back if the block raises."""
        turn = self._writer if self._sqlite else nullcontext()
        with turn, self._transaction("written", mint_writes=True) as connection:
            if not self._sqlite:
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
            yield connection

    @contextmanager
    def _transaction(self, access: str, **options: Any) -> Iterator[Connection]:
        """Raises `DatabaseUnavailableError` for a fault of the database itself, not of a statement."""
        try:
            with self._engine.connect().execution_options(**options) as connection, connection.begin():
                yield connection
            self._note(access, "")
        except (SQLAlchemyError, sqlite3.Error) as error:
            if not _is_unavailable(error):
                raise
            reason = _first_line(error)
            self._note(access, reason)
            raise DatabaseUnavailableError(
                f"the database {self.url} cannot be used: {reason}; needed: a running and writable database, on a disk "
                "with free space"
            ) from error

    def _note(self, access: str, reason: str) -> None:
        with self._failures_lock:
            has_changed = bool(self._failures[access]) != bool(reason)
            self._failures[access] = reason
        if has_changed:
            self._on_change(access, reason)

    def close(self) -> None:
        """Close all idle connections."""
        self._engine.dispose()


def connect(url: str, on_change: Callable[[str, str], object] = lambda access, reason: None) -> Database:
    """The database at `sqlite:///PATH` or `postgresql://USER:PASSWORD@HOST/NAME`, with migrated tables.

    Raises `MintError` if it is unreachable, of another kind, or written by a newer mint.
    """
    database = Database(make_engine(url), on_change)
    try:
        with database.write() as connection:
            _migrate(connection, database.url)
    except BaseException:
        database.close()
        raise
    return database


def make_engine(address: str) -> Engine:
    """The engine of a database, without migrating its tables; raises `MintError` for a bad address."""
    try:
        url = make_url(address)
    except ArgumentError:
        url = URL.create("")
    if url.drivername == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise MintError("a database in memory cannot be shared with runners; needed: a file, sqlite:///PATH")
        wait = {"timeout": _WAIT_SECONDS}
        engine = create_engine(url, json_serializer=_json, connect_args=wait, pool_size=32, max_overflow=32)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if url.drivername not in ("postgresql", "postgres", _POSTGRESQL):
        raise MintError("not the address of a database; needed: sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME")
    try:
        return create_engine(
            url.set(drivername=_POSTGRESQL),
            json_serializer=_json,
            pool_size=8,
            max_overflow=8,
            pool_pre_ping=True,  # a restarted database is no error
            isolation_level="READ COMMITTED",  # a writer sees, after its lock, all earlier commits
            connect_args={
                "connect_timeout": 10,
                "options": f"-c lock_timeout={_WAIT_SECONDS}s -c idle_in_transaction_session_timeout={_STUCK_SECONDS}s",
            },
        )
    except ModuleNotFoundError as error:
        raise MintError(
            f"{url.render_as_string()} needs the package {error.name}; install it: {install_command('postgres')}"
        ) from None


def _json(value: object) -> str:
    return json.dumps(value, allow_nan=False)  # PostgreSQL and browsers reject NaN


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # `_begin_sqlite` begins transactions, not the driver
    _set_wal(connection)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


@retry(
    retry=retry_if_exception_message(match="database is locked"),
    stop=stop_after_delay(_WAIT_SECONDS),
    wait=wait_fixed(_RETRY_SECONDS),
    reraise=True,
)
def _set_wal(connection: sqlite3.Connection) -> None:
    """Set the journal mode of the file; for this switch alone SQLite does not use its own busy timeout."""
    connection.execute("PRAGMA journal_mode=WAL")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("mint_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _migrate(connection: Connection, url: str) -> None:
    """Create or migrate the tables within the transaction of `connection`: completely or not at all."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    current = set(MigrationContext.configure(connection).get_current_heads())
    if unknown := current - known:
        raise MintError(
            f"the database {url} is at revision {', '.join(sorted(unknown))}, this mint knows revisions up to "
            f"{scripts.get_current_head()}; needed: the mint that wrote it, or a newer one"
        )
    if not current:
        metadata.create_all(connection, checkfirst=False)  # a foreign table of the same name is an error
        command.stamp(config, "head")
    elif current != {scripts.get_current_head()}:
        command.upgrade(config, "head")


def _is_unavailable(error: SQLAlchemyError | sqlite3.Error) -> bool:
    is_denied = getattr(getattr(error, "orig", None), "sqlstate", None) == "42501"  # PostgreSQL: insufficient privilege
    is_no_database = type(error) is DatabaseError  # SQLite: the file has another content
    kinds = (OperationalError, InterfaceError, TimeoutError, sqlite3.Error)
    return is_denied or is_no_database or isinstance(error, kinds)


def _first_line(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    return next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)

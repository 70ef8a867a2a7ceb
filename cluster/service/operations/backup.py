"""Backup, restoration and check of the data of a service on SQLite, while it runs.

A backup is a data folder: the database, and the files of its artifacts under their digests. The database is copied in
one snapshot (SQLite's backup API). All artifacts are held before it, so no file of the snapshot is evicted while files
are copied. Files never change, so a second backup into the same folder copies only new ones. Caches, logs, and work of
unfinished jobs are no part of it: those jobs start again.
"""

import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from cluster.service.data.catalog import Catalog
from cluster.service.data.database import connect
from cluster.service.errors import NotFoundError
from cluster.service.settings import file_url
from cluster.service.store.store import file_path
from mint.core.errors import MintError
from mint.core.files import flush, partial_path
from mint.model.checkpoint.manifest import file_digest

DATABASE, STORE = "service.db", "store"
_HOLDER = "backup"
_HOLD_SECONDS = 3600.0  # renewed with every file
_EVERYTHING = 1_000_000_000

OnFile = Callable[[int, int, str], object]  # bytes done, bytes of all, name


@dataclass(frozen=True, slots=True)
class Copied:
    """The result of a backup or a restoration: all its files and bytes, and those that were copied now."""

    files: int
    nbytes: int
    copied_files: int
    copied_bytes: int


@dataclass(frozen=True, slots=True)
class Condition:
    """The result of a check: the number of files, and a line for every fault."""

    files: int
    nbytes: int
    faults: tuple[str, ...]


def backup(data: Path, target: Path, on_file: OnFile = lambda done, total, name: None) -> Copied:
    """Copy the data of a service, which may run, to a folder: a new one, or an earlier backup, which is brought up.

    Raises `MintError` if `data` holds no service, or `target` something else than a backup.
    """
    _need_service(data)
    if target.exists() and any(target.iterdir()) and not (target / DATABASE).is_file():
        raise MintError(f"{target} is not empty and no backup; needed: a new folder, or an earlier backup")
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    with closing(connect(file_url(data / DATABASE))) as database:
        catalog = Catalog(database)
        holding = _Holding(catalog)
        try:
            partial = partial_path(target / DATABASE)
            _copy_database(data / DATABASE, partial)
            wanted = _files_of(partial)
            copied = _copy_files(data / STORE, target / STORE, wanted, on_file, holding.renew)
            partial.replace(target / DATABASE)
            flush(target)
        finally:
            catalog.drop(_HOLDER)
    for path in _stored(target / STORE):
        if path.name not in wanted:
            path.unlink()
    return copied


def restore(source: Path, data: Path, on_file: OnFile = lambda done, total, name: None) -> Copied:
    """Make a data folder from a backup, with every file's SHA-256 checked; raises `MintError` if there is one."""
    _need_service(source)
    if (data / DATABASE).exists():
        raise MintError(f"{data} holds a service already; needed: a folder without one, such as a new --data")
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    wanted = _files_of(source / DATABASE)
    copied = _copy_files(source / STORE, data / STORE, wanted, on_file, lambda: None, must_match=True)
    partial = partial_path(data / DATABASE)
    _copy_database(source / DATABASE, partial)
    partial.replace(data / DATABASE)
    flush(data)
    return copied


def check(data: Path, *, reads_files: bool = False, on_file: OnFile = lambda done, total, name: None) -> Condition:
    """Look for faults in the data of a service or in a backup, which are not changed; `reads_files` checks SHA-256."""
    _need_service(data)
    faults = [f"{DATABASE}: {fault}" for fault in _database_faults(data / DATABASE)]
    wanted = _files_of(data / DATABASE) if not faults else {}
    total, done = sum(wanted.values()), 0
    for digest, nbytes in wanted.items():
        path = file_path(data / STORE, digest)
        done += nbytes
        if not path.is_file():
            faults.append(f"{path}: missing")
        elif (size := path.stat().st_size) != nbytes:
            faults.append(f"{path}: {size} bytes, needed {nbytes}")
        elif reads_files and file_digest(path).sha256 != digest:
            faults.append(f"{path}: its SHA-256 is another one")
        on_file(done, total, digest[:12])
    return Condition(len(wanted), total, tuple(faults))


@dataclass
class _Holding:
    """Holds all artifacts against eviction; one that is evicted before is no part of the snapshot that follows."""

    catalog: Catalog
    _renewed_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._digests = [artifact.digest for artifact in self.catalog.find(limit=_EVERYTHING)]
        self._hold()

    def renew(self) -> None:
        """Renew all holds if a third of their time is over."""
        if time.monotonic() - self._renewed_at > _HOLD_SECONDS / 3:
            self._renewed_at = time.monotonic()
            self._hold()

    def _hold(self) -> None:
        for digest in self._digests:
            with suppress(NotFoundError):
                self.catalog.hold(digest, _HOLDER, _HOLD_SECONDS)


def _need_service(folder: Path) -> None:
    if not (folder / DATABASE).is_file():
        raise MintError(
            f"{folder}: no {DATABASE} in it; needed: the --data folder of a service, or its backup. A service on "
            "PostgreSQL is saved with pg_dump first, then a copy of DIR/store"
        )


def _copy_database(source: Path, target: Path) -> None:
    """Copy one snapshot of a database, as a single file, without the holds of downloads and jobs."""
    target.unlink(missing_ok=True)
    with _naming(source), closing(sqlite3.connect(source)) as origin, closing(sqlite3.connect(target)) as copy:
        origin.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE")
        with copy:
            copy.execute("DELETE FROM holds")
    target.chmod(0o600)
    flush(target)


def _files_of(database: Path) -> dict[str, int]:
    """The sizes of all files of artifacts by their digests."""
    uri = f"{database.absolute().as_uri()}?mode=ro"
    with _naming(database), closing(sqlite3.connect(uri, uri=True)) as connection:
        return dict(connection.execute("SELECT DISTINCT digest, nbytes FROM artifact_files"))


@contextmanager
def _naming(database: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise MintError(f"{database}: {error}; needed: the database of a service, or another backup") from error


def _copy_files(
    source: Path,
    target: Path,
    wanted: dict[str, int],
    on_file: OnFile,
    renew: Callable[[], object],
    *,
    must_match: bool = False,
) -> Copied:
    total, done, copied_files, copied_bytes = sum(wanted.values()), 0, 0, 0
    for digest, nbytes in wanted.items():
        path = file_path(target, digest)
        if not (path.is_file() and path.stat().st_size == nbytes):
            renew()
            _copy_file(file_path(source, digest), path, digest if must_match else "")
            copied_files, copied_bytes = copied_files + 1, copied_bytes + nbytes
        done += nbytes
        on_file(done, total, digest[:12])
    return Copied(len(wanted), total, copied_files, copied_bytes)


def _copy_file(source: Path, target: Path, digest: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(target)
    if not source.is_file():
        raise MintError(f"{source} is missing; mint service check lists all that is")
    shutil.copyfile(source, partial)
    if digest and file_digest(partial).sha256 != digest:
        partial.unlink()
        raise MintError(f"{source}: its SHA-256 is another one, so the backup is damaged; needed: another backup")
    flush(partial)
    partial.replace(target)


def _database_faults(path: Path) -> Iterator[str]:
    """The lines of SQLite's own checks that are not ok."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            yield from (line for (line,) in connection.execute("PRAGMA integrity_check") if line != "ok")
            for table, row, parent, _ in connection.execute("PRAGMA foreign_key_check"):
                yield f"row {row} of {table} names a missing row of {parent}"
    except sqlite3.Error as error:
        yield str(error)


def _stored(store: Path) -> Iterator[Path]:
    return (path for path in store.glob("??/*") if path.is_file())

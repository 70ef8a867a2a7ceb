"""The machines that serve a database: their capacity, and the one store that they share.

An artifact is rows in the database and files in DIR/store. So servers of one database must share one DIR: otherwise
each would list files that it lacks, and evict rows of the other. A file in the store has its id, which moves with it;
the database has the id of its store.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from sqlalchemy import delete, insert, select

from cluster.service.data.database import Database
from cluster.service.data.tables import drains, hosts, stores
from mint.core.cache import recall
from mint.core.errors import MintError
from mint.core.files import write_whole

BEAT_SECONDS = 5.0
GONE_SECONDS = 24 * 3600.0  # without a report, until a machine is removed


@dataclass(frozen=True, slots=True)
class Host:
    """The last report of a machine."""

    name: str
    slots: int
    free_bytes: int
    store_bytes: int
    cluster: str


@dataclass
class Hosts:
    """The machines in a database."""

    database: Database
    clock: Callable[[], float] = time.time

    def report(self, host: Host) -> None:
        """Save the state of a machine now; remove machines without reports."""
        now = self.clock()
        is_replaced = (hosts.c.name == host.name) | (hosts.c.seen_at < now - GONE_SECONDS)
        with self.database.write() as connection:
            connection.execute(delete(hosts).where(is_replaced))
            connection.execute(insert(hosts).values(**asdict(host), seen_at=now))

    def last_seen(self) -> dict[Host, float]:
        """The machines, and the time of the last report of each."""
        rows = self.database.rows(select(hosts).order_by(hosts.c.name))
        return {Host(*(row._mapping[name] for name in Host.__slots__)): row.seen_at for row in rows}

    def drain(self, name: str, by: str) -> None:
        """Let a machine begin no more jobs; those that it runs go on. Noted with the person who wants it."""
        with self.database.write() as connection:
            connection.execute(delete(drains).where(drains.c.host == name))
            connection.execute(insert(drains).values(host=name, by=by))

    def end_drain(self, name: str) -> None:
        """Let a machine begin jobs again."""
        with self.database.write() as connection:
            connection.execute(delete(drains).where(drains.c.host == name))

    def drained(self) -> dict[str, str]:
        """The machines that begin no job, and the person who wants it of each."""
        return {row.host: row.by for row in self.database.rows(select(drains))}

    def require_store(self, store: Path, host: str) -> None:
        """Raise `MintError` unless `store` belongs to this database; the first store does from then on."""
        file = store / "id"
        store.mkdir(parents=True, exist_ok=True)
        with self.database.write() as connection:
            file_id = (recall(file, bytes.decode) or "").strip()
            row = connection.execute(select(stores)).one_or_none()
            if row is None:
                id = file_id or secrets.token_hex(16)
                write_whole(file, f"{id}\n".encode())
                connection.execute(insert(stores).values(id=id, place=f"{host}:{store}"))
            elif row.id != file_id:
                raise MintError(
                    f"{store} is not the store of the database {self.database.url}, which is {row.place}; needed: one "
                    "--data folder for all servers of a database, on a shared disk. If that store is lost for good, "
                    f"run: echo {row.id} > {file}"
                )

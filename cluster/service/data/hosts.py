"""The machines that serve a database: what each has room for, and the one store that they share.

An artifact is rows in the database and files in DIR/store. Servers of one database therefore share one DIR: otherwise
each would list what it cannot send, and evict what another has. The store says who it is in a file, which moves with
it, and the database knows that of its own.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from sqlalchemy import delete, insert, select

from cluster.service.data.database import Database
from cluster.service.data.tables import hosts, stores
from mint.core.errors import MintError
from mint.core.files import flush

BEAT_SECONDS = 5.0
GONE_SECONDS = 24 * 3600.0  # without a sign of life, until a machine is forgotten


@dataclass(frozen=True, slots=True)
class Host:
    """A machine as it last told of itself."""

    name: str
    slots: int
    free_bytes: int
    store_bytes: int
    cluster: str


class Hosts:
    """The machines in a database."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def beat(self, host: Host) -> None:
        """Tell how a machine is now."""
        now = self._clock()
        with self._database.write() as connection:
            connection.execute(
                delete(hosts).where((hosts.c.name == host.name) | (hosts.c.seen_at < now - GONE_SECONDS))
            )
            connection.execute(insert(hosts).values(**asdict(host), seen_at=now))

    def seen(self) -> dict[Host, float]:
        """The machines, and when each was last heard of."""
        with self._database.read() as connection:
            rows = connection.execute(select(hosts).order_by(hosts.c.name)).all()
        return {Host(row.name, row.slots, row.free_bytes, row.store_bytes, row.cluster): row.seen_at for row in rows}

    def share(self, store: Path, host: str) -> None:
        """Raise `MintError` unless `store` is the one of this database; the first becomes it."""
        file = store / "id"
        store.mkdir(parents=True, exist_ok=True)
        with self._database.write() as connection:
            found = file.read_text().strip() if file.exists() else ""
            row = connection.execute(select(stores)).one_or_none()
            if row is None:
                id = found or secrets.token_hex(16)
                _write(file, id)
                connection.execute(insert(stores).values(id=id, place=f"{host}:{store}"))
            elif row.id != found:
                raise MintError(
                    f"{store} is not where the database {self._database.place} has its files, that is {row.place}; "
                    "needed: one --data folder for all servers of a database, on a disk that they share. If that store "
                    f"is lost, and what was in it may be forgotten: echo {row.id} > {file}"
                )


def _write(file: Path, text: str) -> None:
    new = file.with_name(f"id.{secrets.token_hex(8)}")
    new.write_text(text + "\n")
    flush(new)
    new.replace(file)

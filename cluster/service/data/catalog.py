"""What is in the store, and what of it may go: artifacts, their files, who holds them, and what models are called.

The files themselves are the store's. `add` and `remove` call it inside their transaction: so nobody adds an artifact
while files that it shares are being deleted.
"""

import time
from collections.abc import Callable, Sequence

from sqlalchemy import Connection, delete, exists, func, insert, select, update

from cluster.service.data.database import Database
from cluster.service.data.records import Artifact, StoredFile
from cluster.service.data.tables import artifact_files, artifacts, holds, identities
from cluster.service.errors import ArtifactInUseError, NotFoundError


class Ledger:
    """The artifacts in a database."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def add(
        self, artifact: Artifact, settle: Callable[[], object] = lambda: None, *, holder: str = "", seconds: float = 0.0
    ) -> None:
        """Note that an artifact is in the store, as used now; `settle` puts its files there while none is removed.

        A `holder` holds it from that very moment.
        """
        now, digest = self._clock(), artifact.digest
        with self._database.write() as connection:
            settle()
            if connection.execute(select(artifacts).where(artifacts.c.digest == digest)).one_or_none() is None:
                connection.execute(
                    insert(artifacts).values(
                        digest=digest, kind=artifact.kind, identity=artifact.identity, nbytes=artifact.nbytes,
                        created_at=now, used_at=now,
                    )
                )  # fmt: skip
                rows = [
                    {"artifact": digest, "name": file.name, "digest": file.digest, "nbytes": file.nbytes}
                    for file in artifact.files
                ]
                if rows:
                    connection.execute(insert(artifact_files), rows)
            else:
                connection.execute(update(artifacts).where(artifacts.c.digest == digest).values(used_at=now))
            if holder:
                _hold(connection, digest, holder, now + seconds)

    def get(self, digest: str) -> Artifact:
        """One artifact; raises `NotFoundError`."""
        with self._database.read() as connection:
            found = _read(connection, [digest])
        if not found:
            raise NotFoundError(f"there is no artifact {digest!r}: it was never made here, or made room for others")
        return found[0]

    def find(self, kind: str | None = None, identity: str | None = None, limit: int = 100) -> list[Artifact]:
        """The artifacts of a kind, of a model; the last made first."""
        statement = select(artifacts.c.digest).order_by(artifacts.c.created_at.desc(), artifacts.c.digest).limit(limit)
        if kind is not None:
            statement = statement.where(artifacts.c.kind == kind)
        if identity is not None:
            statement = statement.where(artifacts.c.identity == identity)
        with self._database.read() as connection:
            return _read(connection, connection.execute(statement).scalars().all())

    def nbytes(self) -> int:
        """Bytes of all files in the store, each once."""
        once = select(artifact_files.c.digest, artifact_files.c.nbytes).distinct().subquery()
        with self._database.read() as connection:
            return int(connection.execute(select(func.coalesce(func.sum(once.c.nbytes), 0))).scalar_one())

    def has_file(self, digest: str) -> bool:
        """Whether a file of some artifact has this digest."""
        with self._database.read() as connection:
            return bool(connection.execute(select(exists().where(artifact_files.c.digest == digest))).scalar_one())

    def touch(self, digest: str) -> None:
        """Note that an artifact is used now: it goes last when room is needed."""
        change = update(artifacts).where(artifacts.c.digest == digest).values(used_at=self._clock())
        with self._database.write() as connection:
            connection.execute(change)

    def hold(self, digest: str, holder: str, seconds: float) -> None:
        """Keep an artifact for a job or a download, from now on for so long; raises `NotFoundError`."""
        now = self._clock()
        with self._database.write() as connection:
            change = update(artifacts).where(artifacts.c.digest == digest).values(used_at=now)
            if connection.execute(change).rowcount == 0:
                raise NotFoundError(f"there is no artifact {digest!r} to hold")
            _hold(connection, digest, holder, now + seconds)

    def drop(self, holder: str) -> None:
        """Let go of everything that a job or a download holds."""
        with self._database.write() as connection:
            connection.execute(delete(holds).where(holds.c.holder == holder))

    def evictable(self, need: int) -> list[Artifact]:
        """The artifacts to remove, in this order, to free `need` bytes; fewer bytes where the rest is held.

        The least recently used come first. A file that several share is free once the last of them goes.
        """
        held = exists().where(holds.c.artifact == artifacts.c.digest, holds.c.until > self._clock())
        statement = select(artifacts.c.digest).where(~held).order_by(artifacts.c.used_at, artifacts.c.digest)
        uses = select(artifact_files.c.digest, func.count().label("many")).group_by(artifact_files.c.digest)
        chosen: list[Artifact] = []
        with self._database.read() as connection:
            left = {row.digest: row.many for row in connection.execute(uses)}
            for artifact in _read(connection, connection.execute(statement).scalars().all()):
                if need <= 0:
                    break
                chosen.append(artifact)
                for file in artifact.files:
                    left[file.digest] -= 1
                    need -= 0 if left[file.digest] else file.nbytes
        return chosen

    def remove(self, digest: str, discard: Callable[[Sequence[StoredFile]], object] = lambda files: None) -> None:
        """Forget an artifact; `discard` gets those of its files that no other has.

        Raises `ArtifactInUseError` or `NotFoundError`.
        """
        with self._database.write() as connection:
            found = _read(connection, [digest])
            if not found:
                raise NotFoundError(f"there is no artifact {digest!r} to remove")
            holding = select(holds.c.holder).where(holds.c.artifact == digest, holds.c.until > self._clock())
            if holders := connection.execute(holding).scalars().all():
                raise ArtifactInUseError(
                    f"the artifact {digest} is held by {', '.join(sorted(holders))}; it goes once they are done"
                )
            for table in (holds, artifact_files):
                connection.execute(delete(table).where(table.c.artifact == digest))
            connection.execute(delete(artifacts).where(artifacts.c.digest == digest))
            shared = select(artifact_files.c.digest).where(
                artifact_files.c.digest.in_([file.digest for file in found[0].files])
            )
            kept = set(connection.execute(shared).scalars())
            alone = {file.digest: file for file in found[0].files if file.digest not in kept}
            discard(list(alone.values()))

    def settled(self, work: Callable[[Callable[[str], bool]], object]) -> None:
        """Call `work` with what tells whether a digest is of a file of some artifact, while none comes or goes."""
        with self._database.write() as connection:
            known = set(connection.execute(select(artifact_files.c.digest).distinct()).scalars())
            work(known.__contains__)

    # what models are called

    def name(self, path: str, stamp: str, identity: str) -> None:
        """Remember the identity of the model at a path, as long as its files have this stamp."""
        with self._database.write() as connection:
            connection.execute(delete(identities).where(identities.c.path == path))
            connection.execute(insert(identities).values(path=path, stamp=stamp, identity=identity))

    def identity(self, path: str, stamp: str) -> str:
        """The identity of the model at a path; empty if it is not known, or its files have changed."""
        statement = select(identities.c.identity).where(identities.c.path == path, identities.c.stamp == stamp)
        with self._database.read() as connection:
            return connection.execute(statement).scalar_one_or_none() or ""

    def paths(self, identity: str) -> list[str]:
        """What models of an identity are called."""
        statement = select(identities.c.path).where(identities.c.identity == identity).order_by(identities.c.path)
        with self._database.read() as connection:
            return list(connection.execute(statement).scalars())


def _hold(connection: Connection, digest: str, holder: str, until: float) -> None:
    mine = (holds.c.artifact == digest, holds.c.holder == holder)
    if connection.execute(update(holds).where(*mine).values(until=until)).rowcount == 0:
        connection.execute(insert(holds).values(artifact=digest, holder=holder, until=until))


def _read(connection: Connection, digests: Sequence[str]) -> list[Artifact]:
    """The artifacts of some digests that there are, in that order."""
    files: dict[str, list[StoredFile]] = {}
    wanted = select(artifact_files).where(artifact_files.c.artifact.in_(digests)).order_by(artifact_files.c.name)
    for row in connection.execute(wanted):
        files.setdefault(row.artifact, []).append(StoredFile(row.name, row.digest, row.nbytes))
    rows = connection.execute(select(artifacts).where(artifacts.c.digest.in_(digests)))
    found = {row.digest: Artifact(row.kind, row.identity, tuple(files.get(row.digest, ()))) for row in rows}
    return [found[digest] for digest in digests if digest in found]

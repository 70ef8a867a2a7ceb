"""The database rows of the store: artifacts, their files, holds on them, and identities of models.

The store owns the files themselves. `add` and `remove` call the store inside their transaction, so that no artifact is
added while its shared files are deleted.
"""

import time
from collections.abc import Callable, Sequence, Set
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, delete, exists, func, insert, select, update

from cluster.service.data.database import Database
from cluster.service.data.records import Artifact, Person
from cluster.service.data.tables import artifact_files, artifacts, holds, identities
from cluster.service.data.visibility import visible_artifacts
from cluster.service.errors import ArtifactInUseError, NotFoundError
from mint.client.download import ServedFile


@dataclass
class Catalog:
    """The artifacts in a database."""

    database: Database
    clock: Callable[[], float] = time.time

    def add(
        self, artifact: Artifact, settle: Callable[[], object] = lambda: None, *, holder: str = "", seconds: float = 0.0
    ) -> None:
        """Add an artifact, used now; `settle` moves its files into the store while none is removed.

        A `holder` holds it from this moment for `seconds`.
        """
        now, digest = self.clock(), artifact.digest
        with self.database.write() as connection:
            settle()
            if not _use(connection, digest, now):
                row = {name: getattr(artifact, name) for name in ("digest", "kind", "identity", "nbytes")}
                connection.execute(insert(artifacts).values({**row, "created_at": now, "used_at": now}))
                if artifact.files:
                    rows = [{"artifact": digest, **asdict(file)} for file in artifact.files]
                    connection.execute(insert(artifact_files), rows)
            if holder:
                _hold(connection, digest, holder, now + seconds)

    def get(self, digest: str, viewer: Person | None = None) -> Artifact:
        """One artifact; raises `NotFoundError`, also for an artifact that the viewer does not see."""
        seen = select(artifacts.c.digest).where(artifacts.c.digest == digest, visible_artifacts(viewer))
        with self.database.read() as connection:
            rows = _read(connection, connection.execute(seen).scalars().all())
        if not rows:
            raise NotFoundError(f"there is no artifact {digest!r}: it was never made here, or it was evicted")
        return rows[0]

    def find(
        self,
        kind: str | None = None,
        identity: str | None = None,
        limit: int = 100,
        *,
        viewer: Person | None = None,
    ) -> list[Artifact]:
        """The artifacts of a kind and of a model that a viewer sees, newest first."""
        values = {artifacts.c.kind: kind, artifacts.c.identity: identity}
        statement = select(artifacts.c.digest).order_by(artifacts.c.created_at.desc(), artifacts.c.digest).limit(limit)
        statement = statement.where(
            visible_artifacts(viewer), *(column == value for column, value in values.items() if value is not None)
        )
        with self.database.read() as connection:
            return _read(connection, connection.execute(statement).scalars().all())

    def nbytes(self) -> int:
        """Bytes of all files in the store, counted once each."""
        once = select(artifact_files.c.digest, artifact_files.c.nbytes).distinct().subquery()
        return int(self.database.rows(select(func.coalesce(func.sum(once.c.nbytes), 0)))[0][0])

    def has_file(self, digest: str) -> bool:
        """True if a file of an artifact has this digest."""
        return bool(self.database.rows(select(exists().where(artifact_files.c.digest == digest)))[0][0])

    def hold(self, digest: str, holder: str, seconds: float) -> None:
        """Hold an artifact for a job or a download, for `seconds` from now; raises `NotFoundError`.

        This counts as use, so the artifact is evicted last.
        """
        now = self.clock()
        with self.database.write() as connection:
            if not _use(connection, digest, now):
                raise NotFoundError(f"there is no artifact {digest!r} to hold")
            _hold(connection, digest, holder, now + seconds)

    def drop(self, holder: str) -> None:
        """Release all artifacts that a job or a download holds."""
        with self.database.write() as connection:
            connection.execute(delete(holds).where(holds.c.holder == holder))

    def evictable(self, need: int) -> tuple[list[Artifact], int]:
        """The artifacts to remove, in this order, to free `need` bytes; and the bytes that they free.

        The least recently used come first, without those that are held. A shared file is freed with its last artifact.
        """
        is_held = exists().where(holds.c.artifact == artifacts.c.digest, holds.c.until > self.clock())
        statement = select(artifacts.c.digest).where(~is_held).order_by(artifacts.c.used_at, artifacts.c.digest)
        uses = select(artifact_files.c.digest, func.count().label("many")).group_by(artifact_files.c.digest)
        chosen: list[Artifact] = []
        freed = 0
        with self.database.read() as connection:
            uses_left = {row.digest: row.many for row in connection.execute(uses)}
            for artifact in _read(connection, connection.execute(statement).scalars().all()):
                if freed >= need:
                    break
                chosen.append(artifact)
                for file in artifact.files:
                    uses_left[file.digest] -= 1
                    freed += 0 if uses_left[file.digest] else file.nbytes
        return chosen, freed

    def remove(self, digest: str, discard: Callable[[Sequence[ServedFile]], object] = lambda files: None) -> None:
        """Remove an artifact; `discard` gets the files that no other artifact has.

        Raises `ArtifactInUseError` or `NotFoundError`.
        """
        with self.database.write() as connection:
            rows = _read(connection, [digest])
            if not rows:
                raise NotFoundError(f"there is no artifact {digest!r} to remove")
            holding = select(holds.c.holder).where(holds.c.artifact == digest, holds.c.until > self.clock())
            if holders := connection.execute(holding).scalars().all():
                raise ArtifactInUseError(
                    f"the artifact {digest} is held by {', '.join(sorted(holders))}; remove it once they are done"
                )
            for table in (holds, artifact_files):
                connection.execute(delete(table).where(table.c.artifact == digest))
            connection.execute(delete(artifacts).where(artifacts.c.digest == digest))
            files = {file.digest: file for file in rows[0].files}
            others = select(artifact_files.c.digest).where(artifact_files.c.digest.in_(files))
            shared = set(connection.execute(others).scalars())
            discard([file for digest, file in files.items() if digest not in shared])

    def with_digests(self, work: Callable[[Set[str]], object]) -> None:
        """Call `work` with the digests of all files, while no artifact is added or removed."""
        with self.database.write() as connection:
            work(set(connection.execute(select(artifact_files.c.digest).distinct()).scalars()))

    # identities of models

    def save_identity(self, path: str, stamp: str, identity: str) -> None:
        """Save the identity of the model at a path, valid as long as its files have this stamp."""
        with self.database.write() as connection:
            connection.execute(delete(identities).where(identities.c.path == path))
            connection.execute(insert(identities).values(path=path, stamp=stamp, identity=identity))

    def identity(self, path: str, stamp: str) -> str:
        """The identity of the model at a path; empty if it is unknown or its files have changed."""
        statement = select(identities.c.identity).where(identities.c.path == path, identities.c.stamp == stamp)
        return next((identity for (identity,) in self.database.rows(statement)), "")


def _use(connection: Connection, digest: str, now: float) -> bool:
    """Note that an artifact is used now; false if there is none."""
    change = update(artifacts).where(artifacts.c.digest == digest).values(used_at=now)
    return connection.execute(change).rowcount > 0


def _hold(connection: Connection, digest: str, holder: str, until: float) -> None:
    mine = (holds.c.artifact == digest, holds.c.holder == holder)
    if connection.execute(update(holds).where(*mine).values(until=until)).rowcount == 0:
        connection.execute(insert(holds).values(artifact=digest, holder=holder, until=until))


def _read(connection: Connection, digests: Sequence[str]) -> list[Artifact]:
    """The artifacts of these digests in this order, without missing ones."""
    files: dict[str, list[ServedFile]] = {}
    statement = select(artifact_files).where(artifact_files.c.artifact.in_(digests)).order_by(artifact_files.c.name)
    for row in connection.execute(statement):
        files.setdefault(row.artifact, []).append(ServedFile(row.name, row.digest, row.nbytes))
    rows = connection.execute(select(artifacts).where(artifacts.c.digest.in_(digests)))
    by_digest = {row.digest: Artifact(row.kind, row.identity, tuple(files.get(row.digest, ()))) for row in rows}
    return [by_digest[digest] for digest in digests if digest in by_digest]

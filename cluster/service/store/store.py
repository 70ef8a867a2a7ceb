"""Files by the SHA-256 of their bytes: each file once, for any number of artifacts.

Rules. A file appears complete, by a rename, after its bytes are on the disk; it is never written again. Files and
catalog rows change together, inside a transaction of the catalog. A killed process leaves at most a file without a row,
which `sweep` removes. A view made of hard links (`link_out`) keeps the bytes of its files even after eviction.
"""

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cluster.service.data.catalog import Catalog
from cluster.service.data.records import Artifact, Claim
from cluster.service.errors import ArtifactInUseError, NotFoundError
from cluster.service.queue.queue import Queue
from mint.client.download import ServedFile
from mint.core.errors import DiskFullError, MintError
from mint.core.files import flush, is_model_file, partial_path
from mint.core.sizes import enough_size, format_size
from mint.model.checkpoint.manifest import WrittenFile, file_digest

OUTPUT = "model"  # output folder of a job; a partial folder has this prefix
ORPHAN_SECONDS = 3600.0  # longer than any time between a rename and its row
INCOMING_SECONDS = 24 * 3600.0  # copies of many files from another disk take long
RESERVE_BYTES = 32 << 20  # free space for the database
_HOLD_SECONDS = 600.0  # to make a view; every file renews it
_DIGEST = re.compile(r"[0-9a-f]{64}")
_EVERYTHING = 1_000_000_000


def file_path(folder: Path, digest: str) -> Path:
    """The path of the file of a digest in a store's folder; raises `MintError` for what is no digest."""
    if not _DIGEST.fullmatch(digest):
        raise MintError(f"{digest!r} is no digest; needed: 64 hexadecimal digits")
    return folder / digest[:2] / digest


@dataclass
class Store:
    """The files below `folder` and their catalog; at most `max_bytes`, if given."""

    folder: Path
    catalog: Catalog
    max_bytes: int | None = None
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self._incoming = self.folder / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """The path of the file of a digest, which may be missing."""
        return file_path(self.folder, digest)

    def put(
        self,
        kind: str,
        identity: str,
        files: Mapping[str, Path],
        known: Mapping[str, WrittenFile] | None = None,
        *,
        holder: str = "",
    ) -> Artifact:
        """Store files by their names as one artifact, by hard links on the same disk.

        `known` digests are trusted, so they must be fresh; others are computed. If there is no space below `max_bytes`,
        the least recently used artifacts are evicted first. A `holder` holds the artifact until `drop`, or for some
        minutes.
        """
        digests = {name: (known or {}).get(name) or file_digest(path) for name, path in files.items()}
        stored = (ServedFile(name, digest.sha256, digest.nbytes) for name, digest in sorted(digests.items()))
        artifact = Artifact(kind, identity, tuple(stored))
        sizes = {file.digest: file.nbytes for file in artifact.files}
        self.evict(sum(nbytes for digest, nbytes in sizes.items() if not self.catalog.has_file(digest)))
        staged = {digests[name].sha256: self._stage(path) for name, path in files.items()}

        def settle() -> None:
            for digest, stage in staged.items():
                path = self.path(digest)
                path.parent.mkdir(exist_ok=True)
                if not _has_size(path, sizes[digest]):
                    stage.replace(path)
                    flush(path.parent)

        try:
            self.catalog.add(artifact, settle, holder=holder, seconds=_HOLD_SECONDS)
        finally:
            for stage in staged.values():
                stage.unlink(missing_ok=True)
        return artifact

    def link_out(self, artifact: Artifact, folder: Path) -> None:
        """Make a folder with the files of an artifact; it stays complete after an eviction.

        Uses hard links, or copies on another disk. The folder appears when it is complete. Raises `NotFoundError`.
        """
        holder = f"view-{secrets.token_hex(8)}"
        partial = partial_path(folder)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            for file in artifact.files:
                self.catalog.hold(artifact.digest, holder, _HOLD_SECONDS)
                if not is_model_file(file.name):
                    raise MintError(f"{file.name!r} is no name of a file of an artifact")
                (partial / file.name).parent.mkdir(exist_ok=True)
                _link_or_copy(self.path(file.digest), partial / file.name)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, FileNotFoundError):
                raise NotFoundError(f"the artifact {artifact.digest} is incomplete in the store") from error
            raise
        finally:
            self.catalog.drop(holder)
        partial.rename(folder)

    def evict(self, need: int = 0) -> int:
        """Evict the least recently used artifacts until `need` more bytes fit below `max_bytes`; return their number.

        Artifacts in use stay, so fewer bytes may fit; the next call continues.
        """
        excess = self.excess(need)
        return self._remove(self.catalog.evictable(excess)[0]) if excess else 0

    def excess(self, need: int) -> int:
        """Bytes above `max_bytes` after storing `need` more; 0 if they fit."""
        return 0 if self.max_bytes is None else max(0, self.catalog.nbytes() + need - self.max_bytes)

    def free_bytes(self) -> int:
        """Bytes that fit without eviction."""
        free = max(0, shutil.disk_usage(self.folder).free - RESERVE_BYTES)
        return free if self.max_bytes is None else max(0, min(free, self.max_bytes - self.catalog.nbytes()))

    def shortage(
        self, need: int, work: Path | None = None, *, written: int = 0, reserved: int = 0, spare: int = 0
    ) -> str:
        """The reason why `need` more bytes do not fit in `work` and the store, even after eviction; empty if they do.

        `written` of them are already in `work`, `reserved` more belong to other jobs, and `spare` must stay free on the
        disk. If `work` is on another disk than the store, both need the space.
        """
        excess = self.excess(need + reserved)
        evictable = self.catalog.evictable(excess)[1] if excess else 0
        if evictable < excess:
            allowed = format_size(max(0, need - (excess - evictable)))
            others = f", {format_size(reserved)} reserved for running jobs" if reserved else ""
            return f"needs {enough_size(need)}, {allowed} free below the limit of the store{others}"
        need = max(0, need + spare - written)
        disks = {folder.stat().st_dev: folder for folder in (work or self.folder, self.folder)}
        for folder in disks.values():
            free = max(0, shutil.disk_usage(folder).free - RESERVE_BYTES)
            free += evictable if folder == self.folder else 0
            if free < need:
                return f"needs {enough_size(need)}, {format_size(free)} free"
        return ""

    def sweep(self) -> tuple[int, int]:
        """Remove old files without an artifact, and artifacts without a file; return the number of each.

        Killed processes and lost disks leave such files and artifacts.
        """
        count = self._remove(
            artifact
            for artifact in self.catalog.find(limit=_EVERYTHING)
            if not all(_has_size(self.path(file.digest), file.nbytes) for file in artifact.files)
        )
        orphans: list[Path] = []

        def discard(digests: Set[str]) -> None:
            now = self.clock()
            for path in self.folder.glob("*/*"):
                is_incoming = path.parent == self._incoming
                is_old = now - path.lstat().st_ctime > (INCOMING_SECONDS if is_incoming else ORPHAN_SECONDS)
                if is_old and (is_incoming or path.name not in digests):
                    path.unlink(missing_ok=True)
                    orphans.append(path)

        self.catalog.with_digests(discard)
        return len(orphans), count

    def remove(self, digest: str) -> None:
        """Remove an artifact and its files; raises `ArtifactInUseError` or `NotFoundError`."""
        self.catalog.remove(digest, self._discard)

    def _remove(self, artifacts: Iterable[Artifact]) -> int:
        """Remove artifacts that no other process holds or removed; return their number."""
        count = 0
        for artifact in artifacts:
            with suppress(ArtifactInUseError, NotFoundError):
                self.remove(artifact.digest)
                count += 1
        return count

    def _stage(self, path: Path) -> Path:
        """Link or copy a file into the store under a random name, and flush it to the disk."""
        stage = self._incoming / secrets.token_hex(16)
        _link_or_copy(path, stage)
        flush(stage)
        return stage

    def _discard(self, files: Sequence[ServedFile]) -> None:
        for file in files:
            self.path(file.digest).unlink(missing_ok=True)


def reserve_space(queue: Queue, claim: Claim, store: Store, need: int, work: Path, *, written: int) -> None:
    """Reserve `need` bytes of the store for a job, `written` of which are in `work`; raises `DiskFullError`.

    The reservation ends when the job is done or waits. Stored and reserved bytes never exceed the limit, so the
    space is freed now: a download may hold an evictable artifact by the time that the job is done.
    """
    shortage = queue.reserve(claim, need, lambda others: store.shortage(need, work, written=written, reserved=others))
    if not shortage:
        store.evict(queue.reserved_bytes())
        if store.excess(queue.reserved_bytes()):  # a download just began to hold an evictable artifact
            shortage = store.shortage(need, work, written=written, reserved=queue.reserved_bytes() - need)
    if shortage:
        raise DiskFullError(shortage)


def written_bytes(folder: Path) -> int:
    """Bytes on disk of the model that a job writes in `folder`, without the earlier results beside it."""
    nbytes = 0
    for path in folder.glob(f"{OUTPUT}*/*"):
        try:
            nbytes += path.lstat().st_blocks * 512
        except FileNotFoundError:
            continue  # being renamed or removed
    return nbytes


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        # another disk, a disk without hard links, or a file with too many links
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        shutil.copyfile(source, target)


def _has_size(path: Path, nbytes: int) -> bool:
    try:
        return path.stat().st_size == nbytes
    except FileNotFoundError:
        return False

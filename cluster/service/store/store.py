"""Files by the SHA-256 of their bytes: what was made, each file once, however many artifacts it belongs to.

Rules. A file appears in its place whole, by a rename, after its bytes are on the disk; it is never written again. It
is in the ledger or it is nothing: files and rows change together, inside a transaction of the ledger. A process that is
killed leaves at most a file without a row, which `sweep` removes. A view made of hard links (`link_out`) keeps the
bytes of its files whatever is evicted.
"""

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from cluster.service.data.catalog import Ledger
from cluster.service.data.records import Artifact, StoredFile
from cluster.service.errors import ArtifactInUseError, NotFoundError
from mint.core.errors import MintError
from mint.core.files import flush
from mint.core.sizes import format_size
from mint.model.checkpoint.manifest import WrittenFile, file_digest

ORPHAN_SECONDS = 3600.0  # nothing is between its rename and its row for that long
INCOMING_SECONDS = 24 * 3600.0  # the last of many files may take long to copy from another disk
RESERVE_BYTES = 32 << 20  # left free, so that the database can always be written
_HOLD_SECONDS = 600.0  # to make a view; a copy of a large model to another disk renews it with every file
_DIGEST = re.compile(r"[0-9a-f]{64}")
_EVERYTHING = 1_000_000_000


class Store:
    """The files below `folder`, and the ledger that says what they are; at most `max_bytes` of them, if given."""

    def __init__(
        self, folder: Path, ledger: Ledger, max_bytes: int | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.folder = Path(folder)
        self.ledger = ledger
        self.max_bytes = max_bytes
        self._clock = clock
        self._incoming = self.folder / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Where the file of a digest lies, if it is there."""
        if not _DIGEST.fullmatch(digest):
            raise MintError(f"{digest!r} is no digest; needed 64 hexadecimal figures")
        return self.folder / digest[:2] / digest

    def open(self, digest: str) -> BinaryIO:
        """The file of a digest, to read; raises `NotFoundError`."""
        try:
            return self.path(digest).open("rb")
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no file {digest} in the store; it made room for others") from error

    def put(
        self,
        kind: str,
        identity: str,
        files: Mapping[str, Path],
        known: Mapping[str, WrittenFile] | None = None,
        *,
        holder: str = "",
    ) -> Artifact:
        """Store files by their names as one artifact, by hard links where the disk is the same.

        `known` digests are trusted: give those that were compared with the bytes just now. Others are computed. The
        least recently used are evicted first where there is no room below `max_bytes`. A `holder` holds it until they
        drop it, or for some minutes.
        """
        found = known or {}
        digests = {name: found.get(name) or file_digest(path) for name, path in files.items()}
        artifact = Artifact(
            kind, identity, tuple(StoredFile(name, each.sha256, each.nbytes) for name, each in sorted(digests.items()))
        )
        self.evict(self._new_bytes(artifact))
        staged = {digests[name].sha256: self._stage(path) for name, path in files.items()}
        sizes = {file.digest: file.nbytes for file in artifact.files}

        def settle() -> None:
            for digest, stage in staged.items():
                place = self.path(digest)
                place.parent.mkdir(exist_ok=True)
                if not _has_size(place, sizes[digest]):
                    stage.replace(place)
                    flush(place.parent)

        try:
            self.ledger.add(artifact, settle, holder=holder, seconds=_HOLD_SECONDS)
        finally:
            for stage in staged.values():
                stage.unlink(missing_ok=True)
        return artifact

    def link_out(self, artifact: Artifact, folder: Path) -> None:
        """Make a folder with the files of an artifact under their names; it stays whole when they are evicted.

        Hard links, copies on another disk. The folder appears when it is whole. Raises `NotFoundError`.
        """
        holder = f"view-{secrets.token_hex(8)}"
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            for file in artifact.files:
                self.ledger.hold(artifact.digest, holder, _HOLD_SECONDS)
                _link_or_copy(self.path(file.digest), _inside(partial, file.name))
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, FileNotFoundError):
                raise NotFoundError(f"the artifact {artifact.digest} is not whole in the store") from error
            raise
        finally:
            self.ledger.drop(holder)
        partial.rename(folder)

    def evict(self, need: int = 0) -> int:
        """Remove the least recently used until `need` more bytes fit below `max_bytes`; how many artifacts went.

        What a job or a download holds stays, so fewer bytes may fit than are needed: the next call goes on.
        """
        over, count = self.over(need), 0
        for artifact in self.ledger.evictable(over) if over > 0 else ():
            try:
                self.ledger.remove(artifact.digest, self._discard)
            except (ArtifactInUseError, NotFoundError):
                continue  # somebody was quicker
            count += 1
        return count

    def over(self, need: int) -> int:
        """Bytes above `max_bytes` once `need` more are stored; 0 where they fit."""
        return 0 if self.max_bytes is None else max(0, self.ledger.nbytes() + need - self.max_bytes)

    def free_bytes(self) -> int:
        """Bytes that can still be stored without evicting anything."""
        free = max(0, shutil.disk_usage(self.folder).free - RESERVE_BYTES)
        return free if self.max_bytes is None else max(0, min(free, self.max_bytes - self.ledger.nbytes()))

    def lacks(self, need: int, work: Path | None = None, *, written: int = 0, reserved: int = 0, spare: int = 0) -> str:
        """Why `need` more bytes cannot be made in `work` and stored, evicting what may go; empty if they can.

        `written` of them are in `work` already, `reserved` others are kept free for other jobs, and `spare` are to be
        free on the disk beside. A folder on another disk than the store needs the room there too.
        """
        over = self.over(need + reserved)
        evictable = _freed(self.ledger, self.ledger.evictable(over)) if over else 0
        if evictable < over:
            allowed = need - (over - evictable)
            kept = f", {format_size(reserved)} kept for jobs at work" if reserved else ""
            return f"needs {format_size(need)}, {format_size(max(0, allowed))} free below the limit of the store{kept}"
        need = max(0, need + spare - written)
        for folder in _disks(self.folder, work or self.folder):
            usage = shutil.disk_usage(folder)
            free = max(0, usage.free - RESERVE_BYTES) + (evictable if folder == self.folder else 0)
            if free < need:
                return f"needs {format_size(need)}, {format_size(free)} free"
        return ""

    def sweep(self) -> tuple[int, int]:
        """Mend what killed processes left: remove old files that no artifact has, and the reverse.

        Returns how many of each went. Artifacts that a file is missing of are forgotten; the others stay.
        """
        broken = [artifact for artifact in self.ledger.find(limit=_EVERYTHING) if not self._is_whole(artifact)]
        forgotten = 0
        for artifact in broken:
            try:
                self.ledger.remove(artifact.digest, self._discard)
                forgotten += 1
            except (ArtifactInUseError, NotFoundError):
                continue
        removed: list[Path] = []

        def discard(known: Callable[[str], bool]) -> None:
            now = self._clock()
            for path in self._files():
                incoming = path.parent == self._incoming
                old = now - path.lstat().st_ctime > (INCOMING_SECONDS if incoming else ORPHAN_SECONDS)
                if old and (incoming or not known(path.name)):
                    path.unlink(missing_ok=True)
                    removed.append(path)

        self.ledger.settled(discard)
        return len(removed), forgotten

    def _is_whole(self, artifact: Artifact) -> bool:
        return all(_has_size(self.path(file.digest), file.nbytes) for file in artifact.files)

    def _new_bytes(self, artifact: Artifact) -> int:
        new = {file.digest: file.nbytes for file in artifact.files if not self.ledger.has_file(file.digest)}
        return sum(new.values())

    def _files(self) -> Iterator[Path]:
        for folder in self.folder.iterdir():
            if folder.is_dir():
                yield from folder.iterdir()

    def _stage(self, path: Path) -> Path:
        """The file's bytes in the store's own folder, on the disk, under a name of no meaning."""
        stage = self._incoming / secrets.token_hex(16)
        _link_or_copy(path, stage)
        with stage.open("rb") as file:
            os.fsync(file.fileno())
        return stage

    def _discard(self, files: Sequence[StoredFile]) -> None:
        for file in files:
            self.path(file.digest).unlink(missing_ok=True)


def _freed(ledger: Ledger, going: Sequence[Artifact]) -> int:
    """Bytes that are free once these artifacts are gone."""
    digests = {artifact.digest for artifact in going}
    staying = [artifact for artifact in ledger.find(limit=_EVERYTHING) if artifact.digest not in digests]
    kept = {file.digest for artifact in staying for file in artifact.files}
    gone = {file.digest: file.nbytes for artifact in going for file in artifact.files if file.digest not in kept}
    return sum(gone.values())


def _disks(*folders: Path) -> list[Path]:
    """One folder for each disk that they lie on."""
    return list({folder.stat().st_dev: folder for folder in reversed(folders)}.values())


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if Path(name).name != name:
        raise MintError(f"{name!r} is no name of a file of an artifact")
    return path


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        # another disk, a disk without hard links, or a file with too many
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        shutil.copyfile(source, target)


def _has_size(path: Path, nbytes: int) -> bool:
    try:
        return path.stat().st_size == nbytes
    except FileNotFoundError:
        return False

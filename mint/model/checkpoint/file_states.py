"""The state of a model's files: size, time of the last change and inode, as they are before anything is read.

The identity of a model samples its files, and a run reads them for hours. A run on files that changed meanwhile would
mix two models, so results count only while every file is as it was.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mint.core.errors import MintError, is_failed_read


@dataclass(frozen=True, slots=True)
class FileState:
    """One file; another file under its name has another inode."""

    nbytes: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class FileStates:
    """The states of some files of `folder` by name."""

    folder: Path
    states: Mapping[str, FileState]

    @classmethod
    def of(cls, folder: Path, names: Iterable[str]) -> "FileStates":
        """The present states of those of the files that exist."""
        return cls(folder, {name: _state(folder / name) for name in sorted(names) if (folder / name).is_file()})

    def check(self, names: Iterable[str] | None = None) -> None:
        """Raise `MintError` naming the first file, all of them or those of `names`, that is not as it was."""
        for name in self.states if names is None else sorted(self.states.keys() & names):
            state = self.states[name]
            path = self.folder / name
            try:
                fault = "changed" if _state(path) != state else ""
            except OSError as error:
                fault = f"disappeared ({error.strerror})"
            if fault:
                raise MintError(
                    f"{path}: {fault} while it was in use; nothing of it is kept. Put the files of one model there, "
                    "leave them alone, and run the same command again"
                )

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn a failed read of MLX, which names no file, into a `MintError`: the changed file, or the folder."""
        try:
            yield
        except RuntimeError as error:
            if not is_failed_read(error):
                raise
            self.check()
            fault = f"a weight file cannot be read (mlx says: {error})"
            raise MintError(f"{self.folder}: {fault}; check the disk, then run the same command again") from error


def _state(path: Path) -> FileState:
    status = path.stat()
    return FileState(status.st_size, status.st_mtime_ns, status.st_ino)

"""A model folder that is written but not yet finished, and what an existing output is.

The folder is built as `<output>.partial` beside a journal, whose lock keeps other processes away until the folder has
its name. So what bears the final name was whole, on the disk and, in a pipeline, verified.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mint.core.errors import DiskFullError, MintError
from mint.core.files import flush, naming, require_new
from mint.core.progress import OnNote
from mint.model.checkpoint.file_states import FileStates
from mint.model.checkpoint.manifest import MANIFEST_NAME, Manifest, read_manifest
from mint.model.checkpoint.writer import disk_full
from mint.run.device_kind import device_kind, versions

JOURNAL_NAME = "assembly.journal"
TUNED_NAME = "assembly.tuned"  # the trained scales and biases, whole or not there


@dataclass(frozen=True, slots=True)
class Draft:
    """A whole model in `folder`, its unfinished name; it stays there unless it is finished."""

    folder: Path
    output: Path
    manifest: Manifest
    source_files: FileStates

    def finish(self) -> Manifest:
        """Give the folder its final name; `MintError` if the source changed meanwhile or the name is taken."""
        self.source_files.check()
        require_new(self.output)  # a rename replaces an empty folder in silence
        self.folder.rename(self.output)
        (self.output / TUNED_NAME).unlink(missing_ok=True)
        (self.output / JOURNAL_NAME).unlink()  # locked until now: nobody resumes a folder that is about to be renamed
        flush(self.output)
        flush(self.output.parent)
        return self.manifest


def refuse_foreign(output: Path, **digests: str) -> None:
    """Raise `MintError` if `output` exists, but is no finished model of these versions and this kind of device.

    `digests`, such as that of its `plan` or `model`, are compared with those of its manifest.
    """
    if not (output / MANIFEST_NAME).is_file():
        require_new(output)
        return
    manifest = read_manifest(output)
    needed = {**digests, "device": device_kind(), "versions": versions(manifest.versions)}
    differing = [name for name, value in needed.items() if getattr(manifest, name) != value]
    if differing:
        require_new(output, f"it is of another {differing[0]}")


def is_finished(output: Path, on_note: OnNote, **digests: str) -> bool:
    """True for an existing output that is not refused and need only be verified; a note tells why one is refused."""
    if not output.exists():
        return False
    try:
        refuse_foreign(output, **digests)
    except MintError as error:
        on_note(f"without --dry-run this stops: {error.typed}")
        return False
    return True


def read_finished(output: Path) -> Manifest:
    """The manifest of a finished model; what a killed process left there is removed."""
    (output / TUNED_NAME).unlink(missing_ok=True)
    (output / JOURNAL_NAME).unlink(missing_ok=True)
    return read_manifest(output)


@contextmanager
def naming_full_disk(folder: Path, nbytes: int) -> Iterator[None]:
    """Raise `DiskFullError` for `folder`, which needs so many bytes, where a disk becomes full.

    The error of a copy names its source instead. Other errors that name no file get the folder.
    """
    try:
        with naming(folder):
            yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(disk_full(folder, nbytes)) from error
        raise

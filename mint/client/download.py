"""Downloads an artifact of a service: every byte is checked, and only missing bytes are fetched after a break.

The files come into FOLDER.partial, which is renamed when all digests agree, so FOLDER is always whole.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mint.client.http import Connection, SilentError
from mint.core.errors import MintError
from mint.core.files import is_model_file, require_new, require_writable
from mint.core.progress import OnProgress, Progress, ignore
from mint.core.sizes import enough_size, format_size


@dataclass(frozen=True, slots=True)
class ServedFile:
    """A file of an artifact: its plain name, the SHA-256 of its bytes, and their number."""

    name: str
    digest: str
    nbytes: int


def download(
    connection: Connection, digest: str, output: Path, on_progress: OnProgress = ignore
) -> tuple[ServedFile, ...]:
    """Download the artifact `digest` into the new folder `output`, and return its files; killed, the same call resumes.

    Raises `MintError` when `output` exists, the disk is too small, or bytes differ from their digest.
    """
    require_new(output)
    require_writable(output)
    files = _files(connection.ask("GET", f"/v1/artifacts/{digest}"))
    folder = output.with_name(output.name + ".partial")
    folder.mkdir(parents=True, exist_ok=True)
    total = sum(file.nbytes for file in files)
    missing = total - sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if (free := shutil.disk_usage(folder).free) < missing:
        raise MintError(f"{output}: {enough_size(missing)} are still to come, {format_size(free)} are free there")
    done = 0
    for file in files:

        def report(nbytes: int, before: int = done, name: str = file.name) -> None:
            on_progress(Progress("download", before + nbytes, total, name))

        (folder / file.name).parent.mkdir(exist_ok=True)
        fetch(connection, f"/v1/artifacts/{digest}/files/{quote(file.name)}", file, folder / file.name, report)
        done += file.nbytes
    for path in {path for path in folder.rglob("*") if path.is_file()} - {folder / file.name for file in files}:
        path.unlink()  # of another artifact, whose download began under this name
    folder.rename(output)
    return files


def _files(record: Mapping[str, Any]) -> tuple[ServedFile, ...]:
    """The files that an artifact lists; their names must be those of a model, whoever sends them."""
    files = tuple(ServedFile(file["name"], file["digest"], file["nbytes"]) for file in record["files"])
    for file in files:
        if not is_model_file(file.name):
            raise MintError(f"the service lists a file named {file.name!r}, which no model has; nothing was written")
    return files


class _Part:
    """The beginning of a file on the disk, and the digest of its bytes."""

    def __init__(self, file: BufferedRandom) -> None:
        file.seek(0)
        self.file = file
        self.digest, self.nbytes = hashlib.file_digest(file, "sha256"), file.tell()

    def append(self, chunk: bytes) -> None:
        self.file.write(chunk)
        self.digest.update(chunk)
        self.nbytes += len(chunk)

    def clear(self) -> None:
        self.file.truncate(0)
        self.digest, self.nbytes = hashlib.sha256(), 0


def fetch(
    connection: Connection, url: str, file: ServedFile, path: Path, report: Callable[[int], None] = lambda nbytes: None
) -> None:
    """Download one file to `path`, after the bytes that lie there; `report` is called with the number of bytes there.

    Raises `MintError` for bytes that differ from the digest, `SilentError` when the service stalls.
    """
    with path.open("a+b") as out:
        part = _Part(out)
        if part.nbytes > file.nbytes or (part.nbytes == file.nbytes and part.digest.hexdigest() != file.digest):
            part.clear()
        report(part.nbytes)
        while part.nbytes < file.nbytes:
            persistently = connection.retrying(
                lambda error: isinstance(error, SilentError), tries=connection.timing.stalls + 1
            )
            persistently(_append, connection, url, file, part, report)
        out.flush()
        os.fsync(out.fileno())
    if part.digest.hexdigest() != file.digest:
        path.unlink()
        raise MintError(f"{file.name}: the bytes that came are not those of its digest; run the same command again")


def _append(connection: Connection, url: str, file: ServedFile, part: _Part, report: Callable[[int], None]) -> None:
    """Append bytes until the file ends or the connection breaks; raises `SilentError` if that brought no byte."""
    before = part.nbytes
    headers = {"Range": f"bytes={before}-", "If-Range": f'"{file.digest}"', "Accept-Encoding": "identity"}
    try:
        with connection.stream("GET", url, headers=headers) as response:
            if response.status_code != 206 and before:  # the whole file again: its content has changed
                part.clear()
            for chunk in response.iter_raw():  # unbuffered: a break loses what a buffer holds
                part.append(chunk)
                report(part.nbytes)
    except SilentError:
        if part.nbytes == before:
            raise
        return
    if part.nbytes == before:
        raise MintError(f"{file.name}: the service sent none of the {file.nbytes - before} bytes left")

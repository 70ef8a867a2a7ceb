"""Download an artifact of a service: every byte checked, and after any break only what is missing comes again.

The files come into FOLDER.partial and get their name when all digests agree, so a folder that is there is whole.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from mint.client.http import Connection, SilentError
from mint.core.errors import MintError
from mint.core.progress import OnProgress, Progress, ignore
from mint.core.sizes import format_size

CHUNK = 4 << 20
BREAKS = 20  # in a row without a new byte, until it is given up


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file of an artifact: its plain name, the SHA-256 of its bytes, and how many there are."""

    name: str
    digest: str
    nbytes: int


def download(connection: Connection, digest: str, output: Path, on_progress: OnProgress = ignore) -> tuple[Wanted, ...]:
    """Bring the artifact `digest` into the new folder `output`; its files. Killed, the same call goes on.

    Raises `MintError` when `output` exists, the disk is too small, or bytes differ from their digest.
    """
    if output.exists():
        raise MintError(f"{output} exists; nothing is ever overwritten. Choose another --output")
    files = _files(connection.ask("GET", f"/v1/artifacts/{digest}"))
    partial = output.with_name(output.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    total = sum(file.nbytes for file in files)
    held = sum(path.stat().st_size for path in partial.iterdir())
    free = shutil.disk_usage(partial).free
    if free < total - held:
        raise MintError(f"{output}: {format_size(total - held)} are still to come, {format_size(free)} are free there")
    done = 0
    for file in files:
        before = done

        def came(nbytes: int, before: int = before, name: str = file.name) -> None:
            on_progress(Progress("download", before + nbytes, total, name))

        _fetch(connection, f"/v1/artifacts/{digest}/files/{quote(file.name)}", file, partial / file.name, came)
        done += file.nbytes
    wanted = {file.name for file in files}
    for path in partial.iterdir():
        if path.name not in wanted:  # of another artifact that was begun under this name
            path.unlink()
    partial.rename(output)
    return files


def _files(record: Mapping[str, Any]) -> tuple[Wanted, ...]:
    """The files that an artifact lists; their names must be plain, whoever sends them."""
    files = tuple(Wanted(each["name"], each["digest"], each["nbytes"]) for each in record["files"])
    for file in files:
        if PurePosixPath(file.name).name != file.name or "\\" in file.name or file.name in (".", ".."):
            raise MintError(f"the service lists a file named {file.name!r}, which no model has; nothing was written")
    return files


def _fetch(connection: Connection, url: str, file: Wanted, path: Path, came: Callable[[int], None]) -> None:
    digest, nbytes = _hashed(path) if path.exists() else (hashlib.sha256(), 0)
    if nbytes > file.nbytes or (nbytes == file.nbytes and digest.hexdigest() != file.digest):
        path.unlink()
        digest, nbytes = hashlib.sha256(), 0
    breaks = 0
    with path.open("ab") as out:
        while nbytes < file.nbytes:
            came(nbytes)
            before = nbytes
            headers = {"Range": f"bytes={nbytes}-", "If-Range": f'"{file.digest}"', "Accept-Encoding": "identity"}
            try:
                with connection.stream(url, headers) as response:
                    if response.status_code != 206 and nbytes:  # all of it again: it is another file by now
                        out.truncate(0)
                        digest, nbytes = hashlib.sha256(), 0
                    for chunk in response.iter_raw():  # as it comes: of what a buffer gathers a break loses all
                        out.write(chunk)
                        digest.update(chunk)
                        nbytes += len(chunk)
                        came(nbytes)
            except SilentError:
                breaks = breaks + 1 if nbytes == before else 1
                if breaks > BREAKS:
                    raise
                time.sleep(min(0.25 * 2**breaks, 10.0))
            else:
                if nbytes == before:
                    raise MintError(f"{file.name}: the service sent none of the {file.nbytes - nbytes} bytes left")
        out.flush()
        os.fsync(out.fileno())
    if digest.hexdigest() != file.digest:
        path.unlink()
        raise MintError(f"{file.name}: the bytes that came are not those of its digest; run the same command again")
    came(nbytes)


def _hashed(path: Path) -> tuple[Any, int]:
    digest, nbytes = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            nbytes += len(chunk)
    return digest, nbytes

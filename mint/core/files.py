"""Files that outlive a kill and a loss of power, and the digests of their bytes."""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any

from mint.core.errors import MintError

MOST_AT_ONCE = 1 << 30  # bytes of a write: macOS refuses more than 2 GiB, which an expert layer can have
MOST_READ = 1 << 30  # bytes of a file that is read into memory whole

_LEFTOVER_SECONDS = 3600.0  # longer than any write of one file

TEMPLATES = "additional_chat_templates"  # the only folder of a model; transformers reads it


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an error of the operating system that names no file this one: those of open files name none."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise


def read_whole(path: Path) -> bytes:
    """The bytes of a file; `MintError` for one of more than `MOST_READ`, or without an end."""
    with naming(path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size or MOST_READ  # a pipe has no size
        text = file.read(min(size, MOST_READ) + 1)
    if len(text) > MOST_READ:
        raise MintError(f"{path}: more than {MOST_READ} bytes; needed: the right file, which is smaller")
    return text


def read_text(path: Path, needed: str) -> str:
    """The text of a file, with line ends of Unix; `MintError` says what is `needed` where it is no text."""
    try:
        text = read_whole(path).decode()
    except UnicodeDecodeError as error:
        raise MintError(f"{path}: not a text in UTF-8 ({error}); needed: {needed}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, remedy: str) -> Any:
    """The JSON value in a file; `MintError` gives the `remedy` where there is none."""
    return parse_json(read_whole(path), path, remedy)


def parse_json(text: bytes, path: Path, remedy: str) -> Any:
    """The JSON value in the text of the file at `path`; `MintError` gives the `remedy` where there is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MintError(f"{path}: not valid JSON ({error}); {remedy}") from error


def begins_with(path: Path, magic: bytes) -> bool:
    """True for a file with these first bytes."""
    if not path.is_file():
        return False
    with naming(path), path.open("rb") as file:
        return file.read(len(magic)) == magic


def write_whole(path: Path, text: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk, and give it its name: whole or not at all.

    Removes what killed writers of the same file left behind: those of this machine, and old ones of any.
    """
    machine = f"{path.name}.{os.uname().nodename}-"
    temporary = path.with_name(f"{machine}{os.getpid()}.tmp")
    for leftover in path.parent.glob(f"{escape(path.name)}.*.tmp"):
        with suppress(FileNotFoundError):
            is_own = leftover.name.startswith(machine)
            is_old = time.time() - leftover.stat().st_mtime > _LEFTOVER_SECONDS
            if is_old or (is_own and not _is_running(leftover.name.removeprefix(machine).removesuffix(".tmp"))):
                leftover.unlink()
    try:
        with naming(temporary), temporary.open("wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError, ValueError):
        return False
    return True


def holds(path: Path, text: bytes) -> bool:
    """True for a file with this content."""
    return path.is_file() and path.stat().st_size == len(text) and path.read_bytes() == text


def remove_temporary(folder: Path) -> None:
    """Remove what a killed `write_whole` left in a folder, where nobody else writes."""
    for path in folder.rglob("*.tmp"):
        path.unlink()


def is_model_file(name: str) -> bool:
    """True for the name that a file of a written model may have: a plain one, or one in the folder of templates."""
    plain = name.removeprefix(f"{TEMPLATES}/")
    return PurePosixPath(plain).name == plain and "\\" not in plain and plain not in ("", ".", "..")


def partial_path(path: Path) -> Path:
    """The file or folder with the unfinished content of `path`."""
    return path.with_name(path.name + ".partial")


def flush(path: Path) -> None:
    """Let the content of a file, or the names in a folder, outlive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset` of an open file; the operating system may take less of it at once."""
    rest = memoryview(data)
    while rest:
        count = os.pwrite(descriptor, rest[:MOST_AT_ONCE], offset)
        rest, offset = rest[count:], offset + count


def sha256_of(pieces: Iterable[bytes | memoryview]) -> str:
    """The SHA-256 of pieces, one after another."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def require_new(path: Path, reason: str = "") -> None:
    """Raise `MintError` if `path` exists."""
    if path.exists() or path.is_symlink():
        because = f" ({reason})" if reason else ""
        remedy = "Choose another --output, move it away, or give --force, which does so"
        raise MintError(f"{path} exists; nothing is ever overwritten{because}. {remedy}")


def require_writable(path: Path) -> None:
    """Raise `MintError` unless `path` can be made: the nearest folder above it that exists may be written to."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise MintError(f"{path}: {folder} is a file; needed: a folder to write to")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise MintError(f"{path}: {folder} is not writable; needed: a folder that you may write to")


def require_outside(path: Path, folder: Path) -> None:
    """Raise `MintError` if `path` is inside `folder`: an output changes no model that it is made of."""
    if folder.resolve() in path.resolve().parents:
        raise MintError(f"{path} is inside {folder}, which it is made of; needed: an --output elsewhere")


def require_loadable(folder: Path) -> None:
    """Raise `MintError` for the name of a model folder in which mlx_lm finds no weights: it searches by a pattern."""
    if not all(fnmatchcase(part, part) for part in folder.absolute().parts):
        raise MintError(f"{folder}: mlx_lm takes brackets for a pattern and would not find the weights; needed: no [ ]")


def move_aside(path: Path) -> Path | None:
    """Rename `path` to the first free of PATH.old, PATH.old2, ...; the new name, or None where nothing was."""
    if not path.exists():
        return None
    numbers = ("", *map(str, range(2, 1000)))
    free = next(name for number in numbers if not (name := path.with_name(f"{path.name}.old{number}")).exists())
    path.rename(free)
    return free

"""Files that outlive a kill and a loss of power, and the digests of their bytes."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

MOST_AT_ONCE = 1 << 30  # bytes of a write: macOS refuses more than 2 GiB, which an expert layer can have

TEMPLATES = "additional_chat_templates"  # the only folder of a model; transformers reads it


def write_whole(path: Path, text: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk, and give it its name: whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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

"""Which folders may be read as models: those below the roots, and nothing that a name or a link makes of them.

A name is relative, with forward slashes; with `..`, an absolute path, a NUL or half a character it is refused before
the disk is asked. What it leads to, and every file in it, must lie below a root once all links are followed: a link to
a file elsewhere would be copied into the result. A model that brings code of its own for its architecture is refused;
that of its tokenizer is never run either: the runner refuses a tokenizer that does not load without.
"""

import hashlib
import json
import os
import stat
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from cluster.service.data.catalog import Ledger
from cluster.service.errors import DatabaseUnavailableError, NotFetchedError
from mint.core.errors import MintError
from mint.model.checkpoint.shards import PATTERN, identity, read_shards
from mint.model.hub_cache import blob_folders, cached, parse_id

_DEEPEST = 5  # folders below a root: those of Hugging Face's cache have three
_LONGEST = 1024  # characters of a name
_MOST_SHOWN = 5
_CONFIG = "config.json"
_MOST_CONFIG_BYTES = 16 << 20


class Roots:
    """The models below `folders`; with `allow_hub` also those of Hugging Face's cache, by their ids.

    What the hub has and the cache has not is not downloaded here (`fetches.py` does that): a name is answered at once.
    """

    def __init__(self, folders: Sequence[Path], ledger: Ledger | None = None, *, allow_hub: bool = False) -> None:
        self._folders = [Path(folder).resolve() for folder in folders]
        self._ledger = ledger
        self._allow_hub = allow_hub
        for folder in self._folders:
            if not folder.is_dir():
                raise MintError(f"{folder}: no such folder; needed folders with models below them")

    def names(self) -> list[str]:
        """The models below the roots, by name."""
        found: dict[str, None] = {}
        for folder in self._folders:
            found.update(dict.fromkeys(_below(folder, folder, self._confined, set())))
        return sorted(found)

    def resolve(self, name: str) -> Path:
        """The folder of the model that people call `name`, with all links followed; raises `MintError`."""
        _check_name(name)
        for folder in self._folders:
            for form in dict.fromkeys([name, *(unicodedata.normalize(each, name) for each in ("NFC", "NFD"))]):
                path = self._confined(folder / form)
                if path and (path / _CONFIG).is_file():
                    return path
        if self._allow_hub and (id := parse_id(name)):
            if path := cached(id):
                return path.resolve()
            raise NotFetchedError(
                f"{name} is neither in the service's folders nor in its cache of the hub; let it come first: "
                "POST /v1/fetches"
            )
        raise MintError(f"there is no model {name!r} here; {self._advice()}")

    def identify(self, name: str) -> tuple[Path, str]:
        """Where a model lies, and its identity; raises `MintError` for one that is not whole, or may not be used.

        The identity is remembered in the ledger for as long as no file changes.
        """
        path = self.resolve(name)
        stamp = self._stamp(path)
        _refuse_code(path)
        known = self._ledger.identity(name, stamp) if self._ledger else ""
        if known:
            return path, known
        try:
            found = identity(read_shards(path), (path / _CONFIG).read_bytes())
        except OSError as error:
            raise MintError(f"the model {name!r} cannot be read: {error.strerror}; check its files") from error
        if self._ledger:
            with suppress(DatabaseUnavailableError):  # it is computed again next time
                self._ledger.name(name, stamp, found)
        return path, found

    def _stamp(self, path: Path) -> str:
        """What changes when a file of a model does; raises `MintError` for what leads out of the roots."""
        digest = hashlib.sha256(os.fsencode(path))
        bases = [*self._folders, *([path, *blob_folders(path)] if self._allow_hub else [])]
        for entry in sorted(os.scandir(path), key=lambda entry: os.fsencode(entry.name)):
            if entry.is_dir():
                continue  # mint reads no folders within a model
            real = Path(os.path.realpath(entry.path))
            if not any(real.is_relative_to(base) for base in bases):
                raise MintError(
                    f"{path.name}: the file {_shown(entry.name)} is a link that leads out of the service's folders; "
                    "needed: a model whose files all lie there. Copy the file in place of the link"
                )
            try:
                found = real.stat()
            except OSError as error:
                raise MintError(f"{path.name}: {_shown(entry.name)} cannot be read: {error.strerror}") from error
            if not stat.S_ISREG(found.st_mode):
                raise MintError(f"{path.name}: {_shown(entry.name)} is no regular file; needed: files only")
            digest.update(os.fsencode(entry.name))
            digest.update(f"\0{found.st_size}\0{found.st_mtime_ns}\0{found.st_ctime_ns}\0{found.st_ino}\0".encode())
        return digest.hexdigest()

    def _confined(self, path: Path) -> Path | None:
        """The folder that a path leads to, if it lies below a root; None otherwise, wherever it leads."""
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError, ValueError):  # not there, a loop of links, no name of a file
            return None
        below = any(real.is_relative_to(folder) for folder in self._folders)
        return real if below and real.is_dir() else None

    def _advice(self) -> str:
        names = self.names()
        if not names:
            return "the service's folders hold no model; put one there, or start the service with another --root"
        return f"needed one of: {', '.join(names[:_MOST_SHOWN])}{', ...' if len(names) > _MOST_SHOWN else ''}"


def _check_name(name: str) -> None:
    parts = name.split("/")
    bad = (
        not name
        or len(name) > _LONGEST
        or any(part in ("", ".", "..") for part in parts)
        or "\\" in name
        or any(unicodedata.category(each) in ("Cc", "Cs") for each in name)
        or Path(name).is_absolute()
    )
    if bad:
        raise MintError(
            f"{_shown(name[:80])} is no name of a model; needed a folder below one of the service's roots, such as "
            "Qwen3-8B or mlx/Qwen3-8B"
        )


def _below(root: Path, folder: Path, confined: Callable[[Path], Path | None], seen: set[Path]) -> Iterator[str]:
    """The names of the models in a folder and below it; each folder once, and a model is not looked into."""
    real = confined(folder)
    if real is None or real in seen:
        return
    seen.add(real)
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
    except OSError:
        return
    names = {entry.name for entry in entries}
    name = folder.relative_to(root).as_posix()
    if _CONFIG in names and name != ".":
        if next(folder.glob(PATTERN), None):
            yield name
        return
    if len(folder.relative_to(root).parts) >= _DEEPEST:
        return
    for entry in entries:
        if not entry.name.startswith(".") and entry.is_dir() and _is_text(entry.name):
            yield from _below(root, Path(entry.path), confined, seen)


def _is_text(name: str) -> bool:
    try:
        _check_name(name)
    except MintError:
        return False
    return True


def _refuse_code(path: Path) -> None:
    file = path / _CONFIG
    if file.stat().st_size > _MOST_CONFIG_BYTES:
        raise MintError(f"{path.name}: its {_CONFIG} has {file.stat().st_size} bytes; that is no config of a model")
    try:
        config = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise MintError(f"{path.name}: {_CONFIG} is not valid JSON; download it again") from error
    if not isinstance(config, dict):
        raise MintError(f"{path.name}: {_CONFIG} is no JSON object; download it again")
    if config.get("model_file") is not None:
        raise MintError(
            f"{path.name}: the model brings its own code ({_shown(str(config['model_file'])[:80])}), which is never "
            "run; needed: an architecture that mlx_lm itself implements"
        )


def _shown(name: str) -> str:
    return repr(name.encode(errors="replace").decode())

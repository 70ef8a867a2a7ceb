"""Resolves the names of models to folders below the roots, and refuses everything outside.

A name is relative, with forward slashes. A name with `..`, an absolute path, a NUL or a lone surrogate is refused
before any access to the disk. With all links followed, the folder and all its files must be below a root: a link to
another file would be copied into the result. A model with its own code is refused. Code of a tokenizer never runs: a
model whose tokenizer needs it is quantized and verified without the tokenizer.
"""

import hashlib
import os
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import permutations, product
from pathlib import Path

from cluster.service.data.catalog import Catalog
from cluster.service.data.visibility import MARK, group_of
from cluster.service.errors import DatabaseUnavailableError, NotFetchedError
from mint.core.errors import MintError
from mint.core.files import parse_json
from mint.model.checkpoint.beside import files_beside
from mint.model.checkpoint.shards import PATTERN, identity, read_shards
from mint.model.gguf.files import SUFFIX, conversion_of, gguf_files, is_conversion, is_first_part
from mint.model.hub_cache import blob_folders, cached, parse_id

_MOST_LEVELS = 5  # of folders below a root; Hugging Face's cache has three
_MOST_CHARACTERS = 1024  # of a name
_MOST_SHOWN = 5
_CONFIG = "config.json"
_MOST_CONFIG_BYTES = 16 << 20


class Roots:
    """The models below `folders`; with `allow_hub` also those of Hugging Face's cache, by their ids.

    `groups` are folders of groups (see `visibility`), with a `Roots` of its own for each.

    GGUF models are converted in the folder `cache`, by default the user's. Names resolve at once: a model that is
    missing from a cache is not downloaded or converted here.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        catalog: Catalog,
        *,
        groups: Sequence[tuple[str, Path]] = (),
        cache: Path | None = None,
        allow_hub: bool = False,
        prefix: str = "",
    ) -> None:
        self._folders = [Path(folder).resolve() for folder in folders]
        self._catalog = catalog
        self._cache = cache
        self._allow_hub = allow_hub
        for folder in self._folders:
            if not folder.is_dir():
                raise MintError(f"{folder}: no such folder; needed folders with models below them")
        self._prefix = prefix
        self._groups = {
            group: Roots(
                [path for name, path in groups if name == group], catalog, cache=cache, prefix=f"{MARK}{group}/"
            )
            for group in dict.fromkeys(name for name, _ in groups)
        }
        self._require_apart()

    def _require_apart(self) -> None:
        """Raise `MintError` if a folder is below one of another group, or of everybody: others would see its models."""
        parts = [self, *self._groups.values()]
        for one, other in permutations(parts, 2):
            for folder, outer in product(one._folders, other._folders):
                if folder.is_relative_to(outer):
                    raise MintError(
                        f"{folder} is below {outer}, whose models others see; needed: a folder outside of it"
                    )

    def _of_group(self, name: str) -> "tuple[Roots, str] | None":
        """The roots of the group in a name, and the rest of the name; None for a name of everybody."""
        group = group_of(name)
        return (self._groups[group], name.partition("/")[2]) if group in self._groups else None

    def names(self) -> list[str]:
        """The models below the roots, by name; the names of a group's begin with `@GROUP/`."""
        return sorted([*self._own_names(), *(name for roots in self._groups.values() for name in roots.names())])

    def _own_names(self) -> set[str]:
        return {self._prefix + name for folder in self._folders for name in self._below(folder, folder, set())}

    def _below(self, root: Path, folder: Path, seen: set[Path]) -> Iterator[str]:
        """The names of the models in a folder and below it; visits each folder once, and no folder of a model."""
        real = self._confined(folder)
        if real is None or real in seen:
            return
        seen.add(real)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
        except OSError:
            return
        name = folder.relative_to(root)
        if folder != root and any(entry.name == _CONFIG for entry in entries):
            if next(folder.glob(PATTERN), None):
                yield name.as_posix()
            return
        for entry in entries:
            if entry.name.startswith(".") or not _is_name(entry.name):
                continue
            if entry.name.endswith(SUFFIX) and is_first_part(Path(entry.path)) and self._file(Path(entry.path)):
                yield (name / entry.name).as_posix()
            elif entry.is_dir() and len(name.parts) < _MOST_LEVELS:
                yield from self._below(root, Path(entry.path), seen)

    def resolve(self, name: str) -> Path:
        """The folder of the model `name`, with all links followed; raises `MintError`."""
        if found := self._of_group(name):
            return found[0].resolve(found[1])
        if not _is_name(name):
            raise MintError(
                f"{_shown(name[:80])} is no name of a model; needed: a folder below one of the service's roots, such "
                "as Qwen3-8B or mlx/Qwen3-8B"
            )
        for folder in self._folders:
            for spelling in dict.fromkeys([name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]):
                path = self._confined(folder / spelling)
                if path and (path / _CONFIG).is_file():
                    return path
        if files := self.gguf(name):
            if (conversion := conversion_of(files, self._cache)).is_dir():
                return conversion
            raise NotFetchedError(f"{name} is not converted yet; needed: convert it first with POST /v1/fetches")
        if self._allow_hub and (id := parse_id(name)):
            if path := cached(id):
                return path.resolve()
            raise NotFetchedError(
                f"{name} is neither in the service's folders nor in its cache of the hub; needed: fetch it first with "
                "POST /v1/fetches"
            )
        raise MintError(f"there is no model {name!r} here; {self._advice()}")

    def gguf(self, name: str) -> list[Path]:
        """The files of the GGUF model `name`; empty for any other name.

        Raises `MintError` for a missing part, and for a part or a small file beside it that is a link out of the roots.
        """
        if found := self._of_group(name):
            return found[0].gguf(found[1])
        for folder in self._folders if name.endswith(SUFFIX) and _is_name(name) else ():
            if path := self._file(folder / name):
                files = gguf_files(path)
                for file in (*files, *(path.parent / beside for beside in files_beside(path.parent, text_only=True))):
                    if not self._file(file):
                        raise _leads_out(path, file.name)
                return files
        return []

    def identify(self, name: str) -> tuple[Path, str]:
        """The folder and the identity of a model; raises `MintError` for an incomplete or forbidden model.

        The catalog caches the identity until a file changes.
        """
        if found := self._of_group(name):
            return found[0].identify(found[1])
        path = self.resolve(name)
        stamp = self._stamp(path)
        _refuse_code(path)
        if cached_identity := self._catalog.identity(self._prefix + name, stamp):
            return path, cached_identity
        try:
            new_identity = identity(read_shards(path), (path / _CONFIG).read_bytes())
        except OSError as error:
            raise MintError(f"the model {name!r} cannot be read: {error.strerror}; check its files") from error
        with suppress(DatabaseUnavailableError):  # the next call computes it again
            self._catalog.save_identity(self._prefix + name, stamp, new_identity)
        return path, new_identity

    def _stamp(self, path: Path) -> str:
        """A digest that changes with every file of a model; raises `MintError` for a link out of the roots."""
        digest = hashlib.sha256(os.fsencode(path))
        has_own_files = self._allow_hub or is_conversion(path)
        bases = [*self._folders, *([path, *blob_folders(path)] if has_own_files else [])]
        for entry in _entries(path):
            real = Path(os.path.realpath(entry.path))
            if not any(real.is_relative_to(base) for base in bases):
                raise _leads_out(path, entry.name)
            try:
                status = real.stat()
            except OSError as error:
                raise MintError(f"{path.name}: {_shown(entry.name)} cannot be read: {error.strerror}") from error
            if entry.is_dir():
                continue  # a link within the roots
            if not stat.S_ISREG(status.st_mode):
                raise MintError(f"{path.name}: {_shown(entry.name)} is no regular file; needed: files only")
            digest.update(os.fsencode(entry.path))
            digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\0{status.st_ino}\0".encode())
        return digest.hexdigest()

    def _confined(self, path: Path) -> Path | None:
        """The folder of a path with all links followed, if it is below a root; None otherwise."""
        real = self._real(path)
        return real if real and real.is_dir() else None

    def _file(self, path: Path) -> Path | None:
        """The path of a regular file, its folder with all links followed, if both are below a root; None otherwise."""
        folder, file = self._confined(path.parent), self._real(path)
        return folder / path.name if folder and file and file.is_file() else None

    def _real(self, path: Path) -> Path | None:
        """A path with all links followed, if it is below a root; None otherwise."""
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError, ValueError):  # missing, a loop of links, or an invalid name
            return None
        return real if any(real.is_relative_to(folder) for folder in self._folders) else None

    def _advice(self) -> str:
        names = sorted(self._own_names())  # without those of groups
        if not names:
            return "the service's folders have no model; needed: a model there, or another --root"
        return f"needed: one of {', '.join(names[:_MOST_SHOWN])}{', ...' if len(names) > _MOST_SHOWN else ''}"


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """The files and links in a folder of a model and in its folders, which its index may name; no hidden folders."""
    for entry in sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name)):
        if not entry.is_dir(follow_symlinks=False):
            yield entry
        elif not entry.name.startswith("."):
            yield from _entries(Path(entry.path))


def _leads_out(model: Path, name: str) -> MintError:
    fault = f"the file {_shown(name)} is a link that leads out of the service's folders"
    remedy = "needed: a model with all files there. Replace the link with a copy of the file"
    return MintError(f"{model.name}: {fault}; {remedy}")


def _is_name(name: str) -> bool:
    return (
        0 < len(name) <= _MOST_CHARACTERS
        and not any(part in ("", ".", "..") for part in name.split("/"))
        and "\\" not in name
        and not name.startswith(MARK)
        and not any(unicodedata.category(character) in ("Cc", "Cs") for character in name)
        and not Path(name).is_absolute()
    )


def _refuse_code(path: Path) -> None:
    file = path / _CONFIG
    if (size := file.stat().st_size) > _MOST_CONFIG_BYTES:
        raise MintError(f"{path.name}: its {_CONFIG} has {size} bytes; needed: at most {_MOST_CONFIG_BYTES}")
    config = parse_json(file.read_bytes(), Path(path.name, _CONFIG), "download it again")
    if not isinstance(config, dict):
        raise MintError(f"{path.name}: {_CONFIG} is no JSON object; download it again")
    if config.get("model_file") is not None:
        raise MintError(
            f"{path.name}: the model has its own code ({_shown(str(config['model_file'])[:80])}), which is never run; "
            "needed: an architecture that mlx_lm itself implements"
        )


def _shown(name: str) -> str:
    return repr(name.encode(errors="replace").decode())

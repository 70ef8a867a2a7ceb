"""The stored formats that each generation of a loader reads: the rows of `loaders.toml`.

A generation is the first release that reads what the one before cannot; later releases read it too. A plan that stores
its modules in different formats needs more than the formats: the loader must read an entry per module (`mixed`). The
entry's key `mode` is an error for loaders older than modes, so a plan of affine formats leaves it out.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mint.core.errors import MintError
from mint.formats.format import FORMATS, Format, known_formats

CURRENT = "current"


@dataclass(frozen=True, slots=True)
class Loader:
    """A generation of a loader: the formats it reads, and the entries of `quantization` it understands."""

    name: str
    released: str  # ISO date; empty for `current`
    formats: tuple[Format, ...]
    mixed: bool  # reads one entry per module; without it every module has the one format, or none
    source: str


@cache
def loaders() -> tuple[Loader, ...]:
    """Every generation, oldest first within a family."""
    import tomllib  # most commands need no row

    file = tomllib.loads(Path(__file__).with_name("loaders.toml").read_text(encoding="utf-8"))
    return tuple(
        Loader(name, released, _formats(reads), mixed, source.format_map(file))
        for name, released, reads, mixed, source in file["loaders"]
    )


def _formats(reads: str) -> tuple[Format, ...]:
    return tuple(format for word in reads.split() for format in FORMATS if str(format).partition("/")[0] == word)


def loader(name: str) -> Loader:
    """The loader generation of this name; `MintError` lists those that exist."""
    by_name = {loader.name: loader for loader in loaders()}
    if name not in by_name:
        raise MintError(f"{name!r} is not a known loader; needed one of: {', '.join(by_name)}")
    return by_name[name]


def compatible_formats(name: str) -> tuple[Format, ...]:
    """The formats that the loader generation `name` reads, `KEEP` among them, in the order of `known_formats`."""
    formats = loader(name).formats
    return tuple(format for format in known_formats() if format in formats or name in format.scheme.loaders)

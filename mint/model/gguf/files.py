"""The GGUF files of a model, one file or numbered parts, and the folder of the cache that they are converted to."""

import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mint.core.cache import cache_folder, cached_path
from mint.core.errors import MintError
from mint.core.files import sha256_of
from mint.model.checkpoint.shards import sampled_ranges

PACKAGE = "gguf"  # reads the files, and decodes the block types that mint does not
SUFFIX = ".gguf"
CONVERSIONS = "gguf"  # folder of the cache
_VERSION = 3  # of the conversion; another one makes its folders anew
_KEY = re.compile(r"[0-9a-f]{32}")
_PART = re.compile(r"^(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.gguf$")


def gguf_files(path: Path) -> list[Path]:
    """The GGUF files of the model at `path`, a file or a folder without safetensors; empty for anything else.

    Raises `MintError` for a file that is not there, a folder with several models, and a part without the others.
    """
    if path.suffix.lower() == SUFFIX and not path.exists():
        raise MintError(f"{path}: no such file; needed: the path of a GGUF file on this machine")
    if path.suffix.lower() == SUFFIX and path.is_file():
        first = path
    elif path.is_dir() and any(path.glob(f"*{SUFFIX}")) and not any(path.glob("*.safetensors")):
        names = sorted(file.name for file in path.glob(f"*{SUFFIX}"))
        models = sorted({match["stem"] if (match := _PART.match(name)) else name for name in names})
        if len(models) > 1:
            raise MintError(
                f"{path}: {len(models)} GGUF models ({', '.join(models[:4])}); needed: the path of one file"
            )
        first = path / names[0]
    else:
        return []
    if not (match := _PART.match(first.name)):
        return [first]
    count = int(match["count"])
    parts = [first.with_name(f"{match['stem']}-{index:05d}-of-{count:05d}{SUFFIX}") for index in range(1, count + 1)]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise MintError(f"{first}: {len(missing)} of {count} parts are missing, first {missing[0]}; copy them there")
    return parts


def is_first_part(file: Path) -> bool:
    """True for a GGUF file that is a model or its first part."""
    match = _PART.match(file.name)
    return not match or int(match["index"]) == 1


def gguf_name(path: Path) -> str:
    """The name of the model in a GGUF file."""
    return match["stem"] if (match := _PART.match(path.name)) else path.stem


def conversion_of(files: Sequence[Path], cache: Path | None = None) -> Path:
    """The folder of a cache, by default the user's, for the model in these files, as this version converts them.

    It exists once they are converted; on machines with the same files and versions it has the same last two names.
    """
    try:
        reader = version(PACKAGE)
    except PackageNotFoundError:
        reader = ""
    key = cached_path(CONVERSIONS, "", _VERSION, reader, identities(files)).name
    return (cache or cache_folder()) / CONVERSIONS / key / gguf_name(files[0])


def is_conversion(folder: Path) -> bool:
    """True for the path of a folder that a GGUF model is converted to, on this machine or another."""
    return folder.parent.parent.name == CONVERSIONS and bool(_KEY.fullmatch(folder.parent.name))


def identities(files: Sequence[Path]) -> list[list[object]]:
    """The name, size and a digest of sampled bytes of each file."""
    return [_identity(file) for file in files]


def _identity(file: Path) -> list[object]:
    nbytes = file.stat().st_size
    with file.open("rb") as stream:
        samples = [(stream.seek(start), stream.read(length))[1] for start, length in sampled_ranges(0, nbytes)]
    return [file.name, nbytes, sha256_of(samples)]

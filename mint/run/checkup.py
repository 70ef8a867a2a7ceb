"""Checks of this machine for mint itself; packages beside mint add theirs (entry points of the group `GROUP`)."""

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mint.core.cache import cache_folder
from mint.core.memory import memory_bytes
from mint.core.sizes import format_size

GROUP = "mint.doctors"
GOOD, DOUBTFUL, BAD = "good", "doubtful", "BAD"
PACKAGES = ("mint-mlx", "mlx", "mlx-lm", "numba", "transformers", "huggingface-hub")
_FREE_BYTES = 2 * 10**9
_OPENBLAS = "apt-get install libopenblas0-pthread: MLX's own BLAS on Linux is 10-40 times slower"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check; `cure` is empty if the verdict is good."""

    check: str
    verdict: str
    found: str
    cure: str = ""


def examine_machine() -> list[Finding]:
    """The findings of all checks; imports MLX."""
    return [_packages(), _processor(), _device(), _products(), _cache(), _disk(), _memory()]


def is_well(findings: list[Finding]) -> bool:
    """True if no finding is bad."""
    return all(finding.verdict != BAD for finding in findings)


def _packages() -> Finding:
    versions = {name: _version(name) for name in PACKAGES}
    missing = [name for name, text in versions.items() if not text]
    found = ", ".join(f"{name} {text}" for name, text in versions.items() if text)
    return _finding("packages", not missing, found, f"{', '.join(missing)} missing: install mint-mlx again", BAD)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _processor() -> Finding:
    found = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    is_native = sys.platform != "darwin" or platform.machine() == "arm64"
    cure = "this Python runs under Rosetta, without MLX: install one for arm64"
    return _finding("processor", is_native, found, cure, BAD)


def _device() -> Finding:
    from mint.kernels.backend import backend

    kind = backend().kind
    where = backend()
    compensated = where.compensates_with if where.fused_rounding is None else "fused kernels"
    text = f"MLX works on {kind}; formats are measured by {where.measures_with}, errors compensated by {compensated}"
    cure = "MLX sees no Metal device; it needs Apple silicon"
    return _finding("device", kind != "cpu" or sys.platform != "darwin", text, cure, BAD)


def _products() -> Finding:
    from mint.run.blas import find_openblas, multiplies_slowly

    library = find_openblas()
    is_fast = bool(library) or not multiplies_slowly()
    return _finding("matrix products", is_fast, library or ("fast" if is_fast else "MLX's own BLAS"), _OPENBLAS)


def _cache() -> Finding:
    folder = cache_folder()
    above = _existing(folder)
    cure = f"{above} is not a writable folder; MINT_CACHE names another cache"
    return _finding("cache", above.is_dir() and os.access(above, os.W_OK), str(folder), cure, BAD)


def _disk() -> Finding:
    free = shutil.disk_usage(_existing(cache_folder())).free
    return _finding("disk", free >= _FREE_BYTES, f"{format_size(free)} free for the cache", "free some space")


def _memory() -> Finding:
    return Finding("memory", GOOD, format_size(memory_bytes()))


def _existing(path: Path) -> Path:
    """The nearest of a path and the folders above it that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def _finding(check: str, is_good: bool, found: str, cure: str, verdict: str = DOUBTFUL) -> Finding:
    return Finding(check, GOOD, found) if is_good else Finding(check, verdict, found, cure)

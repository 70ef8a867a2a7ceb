"""The main job in one call: analyze, allocate, assemble, verify."""

import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from mint.allocate import VETO_DB, allocate
from mint.analyze import analyze
from mint.assemble import assemble, refuse_existing
from mint.device import device_kind, versions
from mint.errors import MintError
from mint.execute import Executor, OnProgress, ignore, in_process
from mint.layout import MAX_SHARD_BYTES
from mint.manifest import Manifest
from mint.plan import Plan
from mint.source import Source, open_source
from mint.verify import Verification, verify


@dataclass(frozen=True, slots=True)
class Quantized:
    """What `quantize` did: the folder, its plan, its checks, and what it took."""

    output: Path
    analysis: Path
    plan: Plan
    manifest: Manifest
    verification: Verification
    seconds: dict[str, float]
    peak_rss_bytes: int


def quantize(
    model: Path | str,
    budget_bytes: int,
    output: Path | str,
    *,
    analysis: Path | str | None = None,
    dtype: str = "",
    veto_db: float = VETO_DB,
    keep_nonfinite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    executor: Executor = in_process,
    on_progress: OnProgress = ignore,
) -> Quantized:
    """Write the best MLX model of `model` whose weight files take at most `budget_bytes` to the new folder `output`.

    The analysis is kept (in the user's cache, or in `analysis`), so another budget costs no measuring. Killed at any
    point, the same call goes on. Raises `MintError` for everything that the user can mend; a model that fails its
    verification raises too, and stays where it is for inspection.
    """
    output = Path(output)
    refuse_existing(output)
    seconds: dict[str, float] = {}
    source = open_source(model, dtype=dtype)
    path = Path(analysis) if analysis else cached_analysis(source)
    with _timed(seconds, "analyze"):
        measured = analyze(source, path, executor=executor, keep_nonfinite=keep_nonfinite, on_progress=on_progress)
    with _timed(seconds, "allocate"):
        plan = allocate(measured, budget_bytes, veto_db=veto_db, max_shard_bytes=max_shard_bytes)
    with _timed(seconds, "assemble"):
        manifest = assemble(plan, source, output, executor=executor, on_progress=on_progress)
    with _timed(seconds, "verify"):
        verification = verify(output, on_progress=on_progress)
    if not verification.passed:
        failed = "; ".join(f"{check.name}: {check.detail}" for check in verification.checks if not check.passed)
        raise MintError(
            f"{output}: written, but it fails its verification ({failed}); do not use it, please report this"
        )
    return Quantized(output, path, plan, manifest, verification, seconds, peak_rss_bytes())


def cached_analysis(source: Source) -> Path:
    """Where the analysis of this very model by these versions on this kind of device is remembered.

    The folder is `MINT_CACHE` if that is set, else the user's cache folder.
    """
    folder = Path(os.environ.get("MINT_CACHE") or platformdirs.user_cache_dir("mint")) / "analyses"
    key = json.dumps([source.identity, source.dtype, device_kind(), versions()], sort_keys=True)
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.mint"


def peak_rss_bytes() -> int:
    """The largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - started, 3)

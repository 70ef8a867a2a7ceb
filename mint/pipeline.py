"""The main job in one call: analyze, allocate, assemble, verify."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mint.analysis.analysis import SCHEMA, Analysis
from mint.analysis.analyze import analyze
from mint.analysis.probes.probe import probe
from mint.analysis.probes.probe_file import Probed, probe_path, probes_beside
from mint.analysis.probes.prober import Probing
from mint.assembly.assemble import assemble, refuse_existing
from mint.assembly.reuse import Reuse
from mint.assembly.stock_child import stock
from mint.assembly.verify import Verification, verify
from mint.core.cache import cache_folder
from mint.core.errors import MintError
from mint.core.memory import peak_rss_bytes
from mint.core.progress import OnProgress, ignore
from mint.core.sizes import Budget
from mint.formats.layout import MAX_SHARD_BYTES
from mint.formats.rounding import parse_rounding
from mint.model.checkpoint.manifest import Manifest
from mint.model.source import Source, open_source
from mint.plan.allocate import budget_bytes
from mint.plan.objectives import objective as objective_named
from mint.plan.plan import Plan
from mint.plan.problem import Problem
from mint.plan.rules import Rules
from mint.run.device_kind import device_kind, versions
from mint.run.executor import Executor, in_process, measuring_device


@dataclass(frozen=True, slots=True)
class Target:
    """A folder to write, and the budget of its weight files, which may depend on what the model turns out to be."""

    output: Path
    budget_bytes: Callable[[Problem], int]


@dataclass(frozen=True, slots=True)
class Quantized:
    """What `quantize` did: the folder, its plan, its checks, and what it took."""

    output: Path
    analysis: Path
    plan: Plan
    manifest: Manifest
    verification: Verification
    reused_bytes: int
    seconds: dict[str, float]
    peak_rss_bytes: int


def quantize(
    model: Path | str,
    budget: int | str | Budget,
    output: Path | str,
    *,
    objective: str = "output",
    rules: Rules = Rules(),  # noqa: B008, it is frozen
    prefer_speed: float = 0.0,
    analysis: Path | str | None = None,
    dtype: str = "",
    rounding: str = "nearest",
    keep_nonfinite: bool = False,
    probing: Probing | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    reuse: Sequence[Path | str] = (),
    executor: Executor = in_process,
    on_progress: OnProgress = ignore,
) -> Quantized:
    """Write the best MLX model of `model` whose weight files take at most `budget` to the new folder `output`.

    `model` is a folder, or as a `str` an id of the Hugging Face hub, which is downloaded if need be.
    The analysis is kept (in the user's cache, or in `analysis`), so another budget costs no measuring; with `probing`
    the sensitivities are measured too and kept beside it, and once there they are used by every later call. Units
    that a folder of `reuse` holds in the planned format are copied. Killed at any point, the same call goes on. Raises
    `MintError` for everything that the user can mend; a model that fails its verification raises too, and stays where
    it is for inspection. `rounding` is "nearest", "search" for scales of less error in the same bytes, or
    "compensate", which also makes up for errors on text that the model itself writes.
    """

    def pose(measured: Analysis, probed: Probed | None) -> Problem:
        return Problem(
            measured,
            objective_named(objective),
            rules,
            probed=probed,
            prefer_speed=prefer_speed,
            max_shard_bytes=max_shard_bytes,
        )

    return quantize_all(
        model,
        [Target(Path(output), partial(budget_bytes, budget))],
        pose,
        analysis=analysis,
        dtype=dtype,
        rounding=rounding,
        keep_nonfinite=keep_nonfinite,
        probing=probing,
        reuse=reuse,
        executor=executor,
        on_progress=on_progress,
    )[0]


def quantize_all(
    model: Path | str,
    targets: Sequence[Target],
    pose: Callable[[Analysis, Probed | None], Problem],
    *,
    analysis: Path | str | None = None,
    dtype: str = "",
    rounding: str = "nearest",
    keep_nonfinite: bool = False,
    probing: Probing | None = None,
    reuse: Sequence[Path | str] = (),
    executor: Executor = in_process,
    on_progress: OnProgress = ignore,
) -> list[Quantized]:
    """Write one model per target from one analysis; `pose` makes the problem of it. Otherwise as `quantize`.

    All plans are made before anything is written. Later targets copy what earlier ones hold in the same format.
    """
    parse_rounding(rounding)
    for target in targets:
        refuse_existing(target.output)
    stock()  # starts while this process analyzes
    seconds: dict[str, float] = {}
    source = open_source(model, dtype=dtype, on_progress=on_progress)
    path = Path(analysis) if analysis else cached_analysis(source, rounding, device=measuring_device(executor))
    with _timed(seconds, "analyze"):
        measured = analyze(
            source,
            path,
            rounding=rounding,
            executor=executor,
            keep_nonfinite=keep_nonfinite,
            on_progress=on_progress,
        )
    beside = (
        Path(analysis) if analysis else cached_analysis(source, device=measuring_device(executor))
    )  # whatever the rounding
    probed = probes_beside(beside)
    if probing:
        with _timed(seconds, "probe"):
            probed = probe(
                source, measured, probe_path(beside), probing=probing, executor=executor, on_progress=on_progress
            )
    with _timed(seconds, "allocate"):
        problem = pose(measured, probed)
        plans = [problem.plan(target.budget_bytes(problem)) for target in targets]
    folders = [Path(folder) for folder in reuse]
    done = []
    for target, plan in zip(targets, plans, strict=True):
        taken = Reuse(folders)
        with _timed(seconds, "assemble"):
            manifest = assemble(plan, source, target.output, reuse=taken, executor=executor, on_progress=on_progress)
        with _timed(seconds, "verify"):
            verification = verify(target.output, on_progress=on_progress)
        _insist(target.output, verification)
        peak = peak_rss_bytes() + verification.peak_rss_bytes
        done.append(Quantized(target.output, path, plan, manifest, verification, taken.nbytes, dict(seconds), peak))
        folders.append(target.output)
    return done


def _insist(output: Path, verification: Verification) -> None:
    if not verification.passed:
        failed = "; ".join(f"{check.name}: {check.detail}" for check in verification.checks if not check.passed)
        raise MintError(
            f"{output}: written, but it fails its verification ({failed}); do not use it, please report this"
        )


def cached_analysis(source: Source, rounding: str = "nearest", *, device: str = "") -> Path:
    """Where the analysis of this very model and rounding by these versions is remembered.

    `device` is the kind, or kinds, that measured; this process's own by default.

    The folder is `MINT_CACHE` if that is set, else the user's cache folder.
    """
    folder = cache_folder() / "analyses"
    device = device or device_kind()
    key = json.dumps([SCHEMA, source.identity, source.dtype, rounding, device, versions()], sort_keys=True)
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.mint"


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - started, 3)

"""Is the folder what its manifest and plan say, does stock mlx_lm load it, and does it compute what was planned?"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import mlx.core as mx
import numpy as np

from mint.analysis.cross_device import ROUNDING, TOLERANCE, is_mixed
from mint.assembly.agreement import difference, plain_logits
from mint.assembly.stock_child import Answer, stock
from mint.core.errors import MintError
from mint.core.progress import OnProgress, Progress, ignore
from mint.formats.format import KEEP
from mint.formats.rounding import ROUNDINGS
from mint.formats.units import Unit
from mint.model.checkpoint.manifest import PLAN_NAME, Manifest, file_digest, read_manifest
from mint.model.checkpoint.reader import StoredModel, all_finite, open_stored
from mint.model.module_tree import read_loaded_config
from mint.model.source import Source
from mint.plan.plan import Plan, quantization_entries, read_plan
from mint.run.executor import in_process, small_cache

LOGITS_TOLERANCE = 1e-2  # float32 noise is 1e-5 on CPUs; matrix units may round to 19 bits; a wrong format gives 1
# as many times the error that was measured may a compensated unit have: it is moved to where inputs are not, and seen
# up to 6 times on real models at 8 bits; other weights have a hundred times as much
COMPENSATED = 20.0
# what a check reads by planned names and formats, it can only read where these hold
_NEEDS = {"finite": ("tensors",), "logits": ("tensors", "config"), "errors": ("tensors",)}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: what it is, whether it holds, and the numbers."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Verification:
    """All checks of a folder."""

    folder: Path
    checks: tuple[Check, ...]
    peak_rss_bytes: int  # of the process that loaded it

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


def verify(folder: Path | str, source: Source | None = None, *, on_progress: OnProgress = ignore) -> Verification:
    """Check the model in `folder` against its manifest, its plan and, when given, its source.

    Raises `MintError` only when there is nothing to check: no manifest, no plan. Disagreements are failed checks.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    plan = read_plan(folder / PLAN_NAME)
    answer = stock().ask(folder, [choice.path for choice in plan.choices])
    looks: list[tuple[str, Callable[[], str]]] = [
        ("files", lambda: _files(folder, manifest)),
        ("bytes", lambda: _bytes(folder, manifest, plan)),
        ("tensors", lambda: _tensors(folder, plan)),
        ("config", lambda: _config(folder, plan)),
        ("finite", lambda: _finite(folder)),
        ("logits", lambda: _logits(folder, plan, answer)),
        ("loads", lambda: _loads(answer)),
    ]
    if source is not None:
        looks.append(("errors", lambda: _errors(folder, plan, source)))
    checks: list[Check] = []
    with small_cache():
        for index, (name, look) in enumerate(looks):
            on_progress(Progress("verify", index, len(looks), name))
            broken = [check.name for check in checks if not check.passed and check.name in _NEEDS.get(name, ())]
            checks.append(Check(name, False, f"not looked at: {broken[0]} failed") if broken else _check(name, look))
    on_progress(Progress("verify", len(looks), len(looks), ""))
    return Verification(folder, tuple(checks), answer().peak_rss_bytes)


class _DisagreesError(Exception):
    """A check does not hold."""


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except (_DisagreesError, MintError) as finding:
        return Check(name, False, str(finding))


def _files(folder: Path, manifest: Manifest) -> str:
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise _DisagreesError(f"{name} is missing")
        digest = file_digest(path)
        if digest.nbytes != expected.nbytes:
            raise _DisagreesError(f"{name} has {digest.nbytes} bytes, the manifest says {expected.nbytes}")
        if digest.sha256 != expected.sha256:
            raise _DisagreesError(f"{name} has SHA-256 {digest.sha256[:16]}, the manifest says {expected.sha256[:16]}")
    return f"{len(manifest.files)} files have the size and SHA-256 of the manifest"


def _bytes(folder: Path, manifest: Manifest, plan: Plan) -> str:
    nbytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if not nbytes == plan.planned_bytes == manifest.weight_bytes:
        raise _DisagreesError(f"weight files have {nbytes} bytes, planned {plan.planned_bytes}")
    if nbytes > plan.budget_bytes:
        raise _DisagreesError(f"weight files have {nbytes} bytes, the budget is {plan.budget_bytes}")
    return f"{nbytes} bytes of weights as planned, {plan.budget_bytes - nbytes} below the budget"


def _tensors(folder: Path, plan: Plan) -> str:
    stored = {name: (tensor.dtype, tensor.shape) for name, tensor in open_stored(folder).tensors.items()}
    planned = {tensor.name: (tensor.dtype, tensor.shape) for group in plan.groups() for tensor in group}
    for name in sorted(stored.keys() | planned.keys()):
        if stored.get(name) != planned.get(name):
            raise _DisagreesError(f"tensor {name}: found {stored.get(name)}, planned {planned.get(name)}")
    return f"{len(stored)} tensors have the planned dtypes and shapes"


def _config(folder: Path, plan: Plan) -> str:
    config = read_loaded_config(folder)
    planned = quantization_entries(plan)
    for name, entry in planned.get("quantization", {}).items():
        written = config.get("quantization", {}).get(name)
        if written != entry:
            raise _DisagreesError(f"{name}: config.json says {written}, planned {entry}")
    if config.get("quantization") != config.get("quantization_config") or bool(planned) != ("quantization" in config):
        raise _DisagreesError("quantization and quantization_config differ in config.json")
    return f"config.json names the format of each of {len(plan.choices)} modules"


def _finite(folder: Path) -> str:
    stored = open_stored(folder)
    names = [name for name, tensor in stored.tensors.items() if tensor.dtype in ("BF16", "F16", "F32")]
    for name in names:
        if not all_finite(stored.raw(name), stored.tensors[name].dtype):
            raise _DisagreesError(f"tensor {name} holds NaN or infinite values")
    return f"{len(names)} tensors of floats are finite"


def _logits(folder: Path, plan: Plan, stock_answer: Callable[[], Answer]) -> str:
    units = {choice.path: (choice.shape, choice.format) for choice in plan.choices}
    try:
        expected = plain_logits(folder, units)  # meanwhile the other process loads and computes
    except Exception as error:  # whatever mlx_lm raises is the finding
        raise _DisagreesError(f"mlx_lm does not compute with the dequantized weights: {error!r}") from error
    answer = stock_answer()
    if answer.loads_error:
        raise _DisagreesError("not compared: mlx_lm does not load it")
    if answer.logits_error:
        raise _DisagreesError(f"mlx_lm does not compute with it: {answer.logits_error}")
    distance = difference(answer.logits, expected)
    if not isfinite(distance):
        raise _DisagreesError("logits are not finite")
    if not distance < LOGITS_TOLERANCE:
        raise _DisagreesError(
            f"logits differ from the dequantized model's by {distance:.2g}, allowed {LOGITS_TOLERANCE}"
        )
    return f"logits equal the dequantized model's to {distance:.1e}"


def _loads(stock_answer: Callable[[], Answer]) -> str:
    answer = stock_answer()
    if answer.loads_error:
        raise _DisagreesError(f"mlx_lm does not load it: {answer.loads_error}")
    return "mlx_lm.load loads it" if answer.has_tokenizer else "mlx_lm loads it (there is no tokenizer to load)"


def _errors(folder: Path, plan: Plan, source: Source) -> str:
    if source.identity != plan.model:
        raise _DisagreesError(f"{source.folder} is not the model of the plan")
    stored = open_stored(folder)
    worst = max(_error_differences(stored, plan, source), default=("", 0.0), key=lambda pair: pair[1])
    if not ROUNDINGS[plan.rounding].is_measured:
        if worst[1] > COMPENSATED:
            raise _DisagreesError(f"unit {worst[0]}: its error is {1 + worst[1]:.0f} times the measured one")
        return (
            f"{len(plan.choices)} units have up to {1 + worst[1]:.1f} times the error that search was measured to have"
        )
    if worst[1] > TOLERANCE + (ROUNDING if is_mixed(plan.device) else 0.0):
        raise _DisagreesError(f"unit {worst[0]}: its error differs from the planned one by {worst[1]:.2g} relative")
    return f"{len(plan.choices)} units have their measured errors (largest relative difference {worst[1]:.1e})"


def _error_differences(stored: StoredModel, plan: Plan, source: Source) -> Iterator[tuple[str, float]]:
    choices = {choice.path: choice for choice in plan.choices}

    def measured_again(unit: Unit, weight: mx.array) -> float:
        choice = choices[unit.path]
        kept = choice.format == KEEP
        written = stored.dequantized(unit.path, choice.format)
        squared = energy = 0.0
        # S x R rows in blocks: float64 sums of float32 differences, without a float64 copy of the whole
        rows = unit.size // unit.shape[-1]
        flat, other = weight.reshape(rows, -1), written.reshape(rows, -1)
        step = max(1, (1 << 22) // unit.shape[-1])
        for start in range(0, rows, step):
            original = np.asarray(flat[start : start + step].astype(mx.float32), dtype=np.float64)
            difference = np.asarray(other[start : start + step], dtype=np.float64) - original
            squared += float(np.vdot(difference, difference))
            energy += float(np.vdot(original, original))
        error = squared / energy if energy else 0.0
        if kept:
            return error
        return abs(error - choice.error) / choice.error if choice.error else error

    for unit, differs in in_process(source, measured_again, source.units):
        yield unit.path, differs

"""Checks a written folder: manifest and plan agree, its loader loads it, and its function is the planned one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mint.analysis.cross_device import ROUNDING, TOLERANCE, is_mixed
from mint.assembly.agreement import FACTOR, INCONCLUSIVE, NEGLIGIBLE, coarse_rounding, distance, plain_logits
from mint.assembly.decoding import check_decoding
from mint.assembly.distances import BLOCK, Distance, Rows, distance_from_block, distance_of
from mint.assembly.stock_child import Answer, stock
from mint.core.errors import MintError
from mint.core.progress import OnProgress, Progress, ignore
from mint.core.records import require_record
from mint.formats.format import FORMATS, KEEP
from mint.formats.rounding import ROUNDINGS, learns
from mint.formats.units import Unit, parts_of
from mint.kernels.missing_outputs import MOST_CHANGE
from mint.model.checkpoint.manifest import PLAN_NAME, Manifest, difference, read_manifest
from mint.model.checkpoint.reader import FLOATS, StoredModel, all_finite, open_stored
from mint.model.checkpoint.verified import record_verification
from mint.model.module_tree import has_tokenizer, read_loaded_config
from mint.model.passes.logits import NeedsMetalError
from mint.model.source import Source
from mint.plan.plan import Choice, Plan, quantization_entries, read_plan
from mint.run.executor import in_process, small_cache
from mint.run.job import BlockJob, Blocks, numbered

# a compensated unit may have this many times the measured error: compensation moves the error where inputs are small.
# Real models show up to 6 times at 8 bits; other weights give a hundred times
COMPENSATED = 20.0
# at few bits, any of them may have this squared error: some have learned what earlier layers lost
LEARNED = 4 * MOST_CHANGE
# checks that read tensors by planned names and formats need these checks to pass
_NEEDS = {"finite": ("tensors",), "logits": ("tensors", "config"), "errors": ("tensors",), "decoding": ("tensors",)}


@dataclass(frozen=True, slots=True)
class Check:
    """One check, its result and its numbers."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Verification:
    """All checks of a folder."""

    folder: Path
    checks: tuple[Check, ...]
    peak_rss_bytes: int  # of the process that loaded it
    tokenizer_fault: str  # a sentence if its tokenizer or processor does not load; no failure: they are the source's

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


def verify(
    folder: Path | str,
    source: Source | None = None,
    *,
    measure_again: bool = True,
    on_progress: OnProgress = ignore,
) -> Verification:
    """Check the model in `folder` against its manifest, its plan and, if given, its source.

    With a source, some of its weights are decoded without MLX and compared (`decoding.py`). With `measure_again` the
    errors of all units are measured too, which reads all of it. Raises `MintError` only without manifest or plan.
    Disagreements are failed checks. The folder records its last verification, if it is writable.
    """
    require_record("open_source", source)
    folder = Path(folder)
    manifest = read_manifest(folder)
    plan = read_plan(folder / PLAN_NAME)
    answer = stock().ask(folder, [choice.path for choice in plan.choices])
    inspections: dict[str, Callable[[], str]] = {
        "files": partial(_files, folder, manifest),
        "bytes": partial(_bytes, folder, manifest, plan),
        "tensors": partial(_tensors, folder, plan),
        "config": partial(_config, folder, plan),
        "finite": partial(_finite, folder, plan),
    }
    if source is not None:
        inspections["decoding"] = partial(_decoding, folder, plan, source)
        if measure_again:
            inspections["errors"] = partial(_errors, folder, plan, source)
    inspections |= {  # last: the child computes meanwhile
        "logits": partial(_logits, folder, plan, answer),
        "loads": partial(_loads, folder, plan.loader, answer),
    }
    checks: dict[str, Check] = {}
    with small_cache():
        for index, (name, inspect) in enumerate(inspections.items()):
            on_progress(Progress("verify", index, len(inspections), name))
            failed = next((need for need in _NEEDS.get(name, ()) if not checks[need].passed), "")
            try:
                _insist(not failed, f"not looked at: {failed} failed")
                checks[name] = Check(name, True, inspect())
            except (_DisagreesError, MintError) as finding:
                checks[name] = Check(name, False, str(finding))
    on_progress(Progress("verify", len(inspections), len(inspections), ""))
    verification = Verification(folder, tuple(checks.values()), answer().peak_rss_bytes, answer().tokenizer_fault)
    record_verification(folder, verification.passed)
    return verification


class _DisagreesError(Exception):
    """A check does not hold."""


def _insist(condition: bool, message: str) -> None:
    if not condition:
        raise _DisagreesError(message)


def _files(folder: Path, manifest: Manifest) -> str:
    fault = difference(folder, manifest)
    _insist(not fault, fault)
    return (
        f"{len(manifest.files)} files have the size and SHA-256 of the manifest, except for the card, which may differ"
    )


def _bytes(folder: Path, manifest: Manifest, plan: Plan) -> str:
    nbytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    as_planned = nbytes == plan.planned_bytes == manifest.weight_bytes
    _insist(as_planned, f"weight files have {nbytes} bytes, planned {plan.planned_bytes}")
    _insist(nbytes <= plan.budget_bytes, f"weight files have {nbytes} bytes, the budget is {plan.budget_bytes}")
    return f"{nbytes} bytes of weights as planned, {plan.budget_bytes - nbytes} below the budget"


def _tensors(folder: Path, plan: Plan) -> str:
    stored = {name: (tensor.dtype, tensor.shape) for name, tensor in open_stored(folder).tensors.items()}
    planned = {tensor.name: (tensor.dtype, tensor.shape) for group in plan.groups() for tensor in group}
    for name in sorted(stored.keys() | planned.keys()):
        tensor, expected = stored.get(name), planned.get(name)
        _insist(tensor == expected, f"tensor {name}: found {tensor}, planned {expected}")
    return f"{len(stored)} tensors have the planned dtypes and shapes"


def _config(folder: Path, plan: Plan) -> str:
    config, planned = read_loaded_config(folder), quantization_entries(plan)
    for name, entry in planned.get("quantization", {}).items():
        written = config.get("quantization", {}).get(name)
        _insist(written == entry, f"{name}: config.json says {written}, planned {entry}")
    same = config.get("quantization") == config.get("quantization_config")
    same = same and bool(planned) == ("quantization" in config)
    _insist(same, "quantization and quantization_config differ in config.json")
    return f"config.json names the format of each of {len(plan.choices)} modules"


def _finite(folder: Path, plan: Plan) -> str:
    stored = open_stored(folder)
    allowed = {f"{choice.path}.weight" for choice in plan.choices if not choice.is_finite}
    floats = {
        name: tensor.dtype
        for name, tensor in stored.tensors.items()
        if tensor.shape and tensor.dtype in FLOATS and name not in allowed  # a scalar may be an infinite bound
    }
    for name, dtype in floats.items():
        parts = parts_of(stored.tensors[name].shape, BLOCK)
        finite = all(all_finite(stored.raw(name, part), dtype) for part in parts)
        _insist(finite, f"tensor {name} holds NaN or infinite values")
    exceptions = f"; {len(allowed)} are not, as --keep-nonfinite allows" if allowed else ""
    return f"{len(floats)} tensors of floats are finite{exceptions}"


def _logits(folder: Path, plan: Plan, stock_answer: Callable[[], Answer]) -> str:
    answer = stock_answer()
    _insist(not answer.loads_error, f"not compared: {plan.loader} does not load it")
    if NeedsMetalError.__name__ in answer.logits_error:
        return "cannot be computed here: its forward pass calls Metal kernels; verify it again on a Mac"
    _insist(not answer.logits_error, f"{plan.loader} does not compute with it: {answer.logits_error}")
    dequantized = partial(_dequantized_logits, folder, plan, answer.tokens)
    change = distance(answer.logits, dequantized())
    if not all(choice.is_finite for choice in plan.choices) and not isfinite(change):
        return "not compared: logits are not finite, since the source has weights that are not"
    _insist(isfinite(change), "logits are not finite")
    if change > NEGLIGIBLE:
        expected = dequantized(one_by_one=True)
        change = distance(answer.logits, expected)
    if change > NEGLIGIBLE:
        rounded = distance(dequantized(one_by_one=True, rounding=coarse_rounding()), expected)
        allowed = max(NEGLIGIBLE, FACTOR * rounded)
        if allowed > INCONCLUSIVE:
            return f"not compared: rounding alone changes the logits of this model by up to {rounded:.1g}"
        limits = f"{change:.2g}, allowed {allowed:.2g}"
        _insist(change <= allowed, f"logits differ from the dequantized model's by {limits}")
    return f"logits equal the dequantized model's to {change:.1e} on {answer.tokens.size} tokens"


def _dequantized_logits(
    folder: Path, plan: Plan, tokens: npt.NDArray[np.int32], **options: Any
) -> npt.NDArray[np.float32]:
    """The logits of the dequantized model, computed in the child too: a crash of MLX does not end this process.

    `options` are those of `plain_logits`. A format that was registered from outside is known to this process only.
    """
    units = {choice.path: (choice.shape, choice.format) for choice in plan.choices}
    fault = f"{plan.loader} does not compute with the dequantized weights"
    if all(choice.format in FORMATS for choice in plan.choices):
        answer = stock().ask_dequantized(folder, units, tokens, **options)()
        message = answer.loads_error or answer.logits_error
        _insist(not message, f"{fault}: {message}")
        return answer.logits
    try:
        return plain_logits(folder, units, tokens, **options)
    except Exception as error:  # a model may raise anything: it is the finding
        raise _DisagreesError(f"{fault}: {error!r}") from error


def _loads(folder: Path, loader: str, stock_answer: Callable[[], Answer]) -> str:
    answer = stock_answer()
    _insist(not answer.loads_error, f"{loader} does not load it: {answer.loads_error}")
    if answer.tokenizer_fault:
        return f"{loader} loads its weights; {answer.tokenizer_fault}"
    return f"{loader}.load loads it" if has_tokenizer(folder) else f"{loader} loads it (there is no tokenizer to load)"


def _decoding(folder: Path, plan: Plan, source: Source) -> str:
    _insist(source.identity == plan.model, f"{source.folder} is not the model of the plan")
    return check_decoding(plan, source, open_stored(folder))


def _errors(folder: Path, plan: Plan, source: Source) -> str:
    _insist(source.identity == plan.model, f"{source.folder} is not the model of the plan")
    choices = {choice.path: choice for choice in plan.choices}
    units = [unit for unit in source.units if choices[unit.path].is_finite]
    learned = LEARNED if learns(ROUNDINGS[plan.rounding], plan.bits_per_weight) else 0.0
    changes = _ErrorChange(open_stored(folder), choices, learned)
    changed = {unit.path: change for unit, change in in_process(source, changes, units)}
    path = max(changed, key=changed.__getitem__, default="")
    worst = changed.get(path, 0.0)
    if not ROUNDINGS[plan.rounding].is_measured:
        _insist(worst <= COMPENSATED, f"unit {path}: its error is {1 + worst:.0f} times the measured one")
        return f"{len(changed)} units have up to {1 + worst:.1f} times the error that search was measured to have"
    tolerance = TOLERANCE + (ROUNDING if is_mixed(plan.device) else 0.0)
    _insist(worst <= tolerance, f"unit {path}: its error differs from the planned one by {worst:.2g} relative")
    return f"{len(changed)} units have their measured errors (largest relative difference {worst:.1e})"


@dataclass(frozen=True, slots=True)
class _ErrorChange(BlockJob[float]):
    """The relative change from the planned to the stored squared error of a unit; the error itself if that is 0."""

    stored: StoredModel
    choices: Mapping[str, Choice]
    learned: float = 0.0  # of the weights' squares: an error up to which nothing counts as a change

    def takes_rows(self, unit: Unit) -> bool:
        return True

    def __call__(self, unit: Unit, weight: mx.array) -> float:
        return self._change(unit, distance_of(self._rows(unit), weight.__getitem__, unit.parts(BLOCK)))

    def of_blocks(self, unit: Unit, blocks: Blocks) -> float:
        rows, distance = self._rows(unit), Distance(0.0, 0.0)
        for slices, block in numbered(unit, blocks):
            distance += distance_from_block(rows, slices, block.reshape(-1, *unit.shape[1:]))
        return self._change(unit, distance)

    def _rows(self, unit: Unit) -> Rows:
        return partial(self.stored.dequantized, unit.path, self.choices[unit.path].format)

    def _change(self, unit: Unit, distance: Distance) -> float:
        choice = self.choices[unit.path]
        planned = 0.0 if choice.format == KEEP else choice.error
        if not planned:
            return distance.relative
        return 0.0 if distance.relative <= self.learned else abs(distance.relative - planned) / planned

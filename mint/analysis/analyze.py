"""Source to Analysis: measure every unit once, whatever happens on the way."""

import time
from collections.abc import Iterable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mint.analysis.analysis import (
    MAGIC,
    SCHEMA,
    Analysis,
    Measurement,
    from_record,
    journal_path,
    read_analysis,
    to_record,
    write_analysis,
)
from mint.analysis.cross_device import is_mixed, rounded
from mint.analysis.norms import norm_gains, preceding_norms
from mint.analysis.unit_jobs import Measure, measure_with_features, ready_kernels
from mint.core.errors import MintError
from mint.core.journal import Journal, read_header
from mint.core.log import log
from mint.core.progress import OnProgress, Progress, ignore
from mint.formats.rounding import parse_rounding
from mint.formats.units import to_fields
from mint.model.kv_trace import active_experts, context_memory
from mint.model.source import Source
from mint.run.device_kind import device_kind, kinds_in, versions
from mint.run.executor import Executor, in_process, measuring_device
from mint.run.job import Job


def analyze(
    source: Source,
    output: Path | str,
    *,
    rounding: str = "nearest",
    executor: Executor = in_process,
    keep_nonfinite: bool = False,
    features: bool = False,
    on_progress: OnProgress = ignore,
) -> Analysis:
    """Measure every unit of `source` and write the analysis to `output`; go on where a killed run stopped.

    `rounding` is how weights will be stored: "nearest", "search" for scales of less error in the same bytes, or
    "compensate", which is measured as "search" is. With `features` every unit's features (see `features.py`) are
    measured too; an analysis that has them serves without.
    Measurements are appended to `output`.partial as they come; the finished file replaces it. Raises `MintError`
    for a weight that is NaN or infinite (unless `keep_nonfinite`: such a unit is kept unquantized) and for an
    `output` that belongs to something else.
    """
    output = Path(output)
    parse_rounding(rounding)
    header = header_of(source, rounding)
    if not features:  # which are computed here
        header["device"] = measuring_device(executor)
    begun = [read_header(path, MAGIC) for path in (output, journal_path(output))]
    header["device"] = _device(header, begun)
    if output.exists():
        return _reuse(output, header, features=features)
    header |= traced_header(source, features=features)
    output.parent.mkdir(parents=True, exist_ok=True)
    ready_kernels(rounding, on_progress, featured=features)
    job: Job[Measurement] = Measure(rounding)
    if features:
        job = partial(measure_with_features, rounding=rounding, gains=_gains(source))
    with Journal(journal_path(output), MAGIC, header) as journal:
        measured = {record["path"]: from_record(record) for record in journal.records}
        pending = [unit for unit in source.units if unit.path not in measured]
        total = sum(unit.nbytes for unit in source.units)
        done = total - sum(unit.nbytes for unit in pending)
        on_progress(Progress("analyze", done, total, ""))
        started = time.perf_counter()
        for unit, measurement in executor(source, job, pending):
            if measurement.nonfinite and not keep_nonfinite:
                raise MintError(_nonfinite(measurement))
            if is_mixed(header["device"]):
                measurement = rounded(measurement)
            journal.append(to_record(measurement))
            measured[unit.path] = measurement
            done += unit.nbytes
            seconds, started = time.perf_counter() - started, time.perf_counter()
            log.debug("unit.measured", unit=unit.path, nbytes=unit.nbytes, seconds=round(seconds, 4))
            on_progress(Progress("analyze", done, total, unit.path))
        analysis = write_analysis(output, header, measured)
        journal.path.unlink()
    return analysis


def header_of(source: Source, rounding: str) -> dict[str, Any]:
    """The first part of the header frame: whatever must be equal for measurements to be comparable."""
    return {
        "schema": SCHEMA,
        "model_type": source.config["model_type"],
        "model": source.identity,
        "dtype": source.dtype,
        "source_nbytes": source.nbytes,
        "rounding": rounding,
        "device": device_kind(),
        "versions": versions(),
        "units": [to_fields(unit) for unit in source.units],
        "parameters": [to_fields(parameter) for parameter in source.parameters],
    }


def traced_header(source: Source, *, features: bool = False) -> dict[str, Any]:
    """The second part of the header frame, from lazy forward passes: it follows from the model and the versions."""
    return {**_traced(source), "features": _featured(source) if features else {}}


def _device(header: Mapping[str, Any], begun: Iterable[Mapping[str, Any] | None]) -> str:
    """The device of the header; if that is one of several kinds that an analysis was begun on, all of them."""
    for first in begun:
        device = str(first.get("device", "")) if first else ""
        more = set(kinds_in(device)) >= set(kinds_in(header["device"]))
        if first and more and _is_of({**header, "device": device}, first):
            return device
    return str(header["device"])


def _is_of(header: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """True if the header `other` of a file agrees with every field of `header`."""
    return all(name in other and other[name] == value for name, value in header.items())


def _traced(source: Source) -> dict[str, Any]:
    """The memory of a context and the share of experts; a model that cannot run on shapes alone is measured too."""
    try:
        return {"context": context_memory(source).to_fields(), "active": active_experts(source)}
    except MintError as error:
        log.warning("context.not_traced", reason=str(error))
        return {"context": str(error), "active": {}}


def _featured(source: Source) -> dict[str, Any]:
    """The part of the header that features depend on: numpy's version, and the norm before each unit."""
    try:
        norms: dict[str, str] | str = preceding_norms(source)
    except MintError as error:
        log.warning("norms.not_traced", reason=str(error))
        norms = str(error)
    return {"numpy": version("numpy"), "norms": norms}


def _gains(source: Source) -> dict[str, npt.NDArray[np.float32]]:
    """The gains of the norms before units; none for a model that cannot run on shapes alone, as its header says."""
    try:
        return norm_gains(source)
    except MintError:
        return {}


def _reuse(output: Path, header: dict[str, Any], *, features: bool) -> Analysis:
    """The finished analysis at `output`, if it is of this very model by these very versions on this kind of device."""
    analysis = read_analysis(output)
    if analysis.rounding != header["rounding"]:
        raise MintError(
            f"{output}: holds an analysis for --rounding {analysis.rounding}, needed one for {header['rounding']}; "
            "choose another --output, or that rounding"
        )
    if features and not analysis.features:
        raise MintError(f"{output}: holds an analysis without features; choose another --output, or go without them")
    other_numpy = features and analysis.features["numpy"] != version("numpy")
    if other_numpy or not _is_of(header, read_header(output, MAGIC) or {}):
        raise MintError(
            f"{output}: holds an analysis of another model, dtype, device or version "
            f"({analysis.model_type}, {analysis.device}, mlx {analysis.versions['mlx']}); choose another --output"
        )
    log.info("analysis.reused", path=str(output))
    return analysis


def _nonfinite(measurement: Measurement) -> str:
    return (
        f"unit {measurement.path}: {measurement.nonfinite} of its weights are NaN or infinite; needed: finite weights. "
        "Download the model again, or keep such units unquantized with --keep-nonfinite"
    )

"""Source to Analysis: measures every unit once, and resumes after a kill."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mint.analysis.analysis import (
    MAGIC,
    SCHEMA,
    Analysis,
    Measurement,
    measurements_of,
    read_analysis,
    write_analysis,
)
from mint.analysis.cast_check import check_cast
from mint.analysis.cross_device import is_mixed, rounded
from mint.analysis.features.features import features as features_of
from mint.analysis.features.features import group_size_of
from mint.analysis.features.norms import norm_gains, preceding_norms
from mint.analysis.unit_jobs import Measure, checksum_of
from mint.core.errors import MintError
from mint.core.files import partial_path
from mint.core.journal import Journal, read_header, remove_stray
from mint.core.log import log
from mint.core.progress import OnNote, OnProgress, ignore, say_nothing
from mint.core.records import reading, require_record
from mint.formats.rounding import DEFAULT_ROUNDING, parse_rounding
from mint.formats.units import Unit, to_fields
from mint.kernels.backend import backend
from mint.kernels.ready import ready_kernels
from mint.kernels.storage import raw
from mint.kernels.warmup import FEATURES, MEASURE
from mint.model.checkpoint.reader import FLOATS, all_finite
from mint.model.kv_trace import active_experts, context_memory
from mint.model.source import Source
from mint.run.device_kind import device_kind, kinds_in, versions
from mint.run.executor import Executor, in_process, measuring_device
from mint.run.job import BlockJob, Blocks, Job
from mint.run.stage import reported


def analyze(
    source: Source,
    output: Path | str,
    *,
    rounding: str = DEFAULT_ROUNDING,
    executor: Executor = in_process,
    keep_nonfinite: bool = False,
    features: bool = False,
    on_progress: OnProgress = ignore,
    on_note: OnNote = say_nothing,
) -> Analysis:
    """Measure every unit of `source` and write the analysis to `output`; resumes after a kill.

    `rounding` is that of the model to write: "nearest", "search" for scales of less error in the same bytes, or
    "compensate", which is measured as "search". `features` adds the features of every unit (see `features`); an
    analysis that has them serves callers without.
    Measurements are appended to `output`.partial; the finished file replaces it. Raises `MintError` for a weight that
    is NaN or infinite (with `keep_nonfinite` such a unit stays unquantized), for a file of the model that changes
    meanwhile, and for an `output` of something else.
    """
    require_record("open_source", source)
    output = Path(output)
    parse_rounding(rounding)
    header = header_of(source, rounding, device_kind() if features else measuring_device(executor))  # features: here
    header["device"] = _device(header, output)
    if output.exists():
        return _reuse(output, header, features=features)
    with source.files.reading():
        check_cast(source, executor.lacking)
        header |= traced_header(source, features=features)
    header["parameter_checksums"] = _parameter_checksums(source, finite=not keep_nonfinite)
    output.parent.mkdir(parents=True, exist_ok=True)
    works = (MEASURE, FEATURES) if features else (MEASURE,)
    ready_kernels(rounding, on_progress, works, {unit.dtype for unit in source.units})
    with source.files.reading(), Journal(partial_path(output), MAGIC, header) as journal:
        with reading(f"{journal.path}: a damaged journal", "remove the file and run the same command again"):
            measurements = measurements_of(journal.records)
        pending = [unit for unit in source.units if unit.path not in measurements]
        if measurements:
            on_note(f"resumes: {len(measurements)} of {len(source.units)} units are measured in {journal.path}")
        results = executor(source, _job(source, rounding, header), pending)
        for unit, measurement, seconds in reported("analyze", results, source.units, pending, on_progress):
            if measurement.nonfinite and not keep_nonfinite:
                raise MintError(
                    f"unit {unit.path}: {measurement.nonfinite} of its weights are NaN or infinite; needed: finite "
                    "weights. Download the model again, or keep such units unquantized with --keep-nonfinite"
                )
            if is_mixed(header["device"]):
                measurement = rounded(measurement)
            journal.append(measurement.to_record())
            measurements[unit.path] = measurement
            log.debug("unit.measured", unit=unit.path, nbytes=unit.nbytes, seconds=round(seconds, 4))
        source.files.check()
        analysis = write_analysis(output, header, measurements)
        journal.path.unlink(missing_ok=True)
    log.info("analysis.measured", units=len(pending), device=header["device"], measured_with=backend().measures_with)
    return analysis


def _parameter_checksums(source: Source, *, finite: bool) -> dict[str, str]:
    """The checksums of all parameters, such as norms, by name.

    Raises `MintError` for a NaN or infinite value if they have to be `finite`; no unit would show it. A scalar may be
    infinite: it bounds activations in the towers of Gemma 4.
    """
    checksums = {}
    with source.files.reading():
        arrays = source.opened.take([parameter.name for parameter in source.parameters])
        for parameter in source.parameters:
            array = arrays.pop(parameter.name)
            mx.eval(array)
            bounded = finite and parameter.shape and parameter.dtype in FLOATS
            if bounded and not all_finite(raw(array), parameter.dtype):
                fault = f"parameter {parameter.name}: some of its values are NaN or infinite"
                raise MintError(f"{fault}; needed: finite values. Download the model again")
            checksums[parameter.name] = checksum_of(array)
    return checksums


def header_of(source: Source, rounding: str, device: str) -> dict[str, Any]:
    """The first part of the header frame: all that must be equal for measurements to be comparable."""
    return {
        "schema": SCHEMA,
        "model_type": source.config["model_type"],
        "model": source.identity,
        "dtype": source.dtype,
        "loader": source.loader,
        "source_nbytes": source.nbytes,
        "rounding": rounding,
        "device": device,
        "versions": versions(source.packages),
        "units": [to_fields(unit) for unit in source.units],
        "parameters": [to_fields(parameter) for parameter in source.parameters],
        "dropped_towers": list(source.dropped_towers),
    }


def traced_header(source: Source, *, features: bool = False) -> dict[str, Any]:
    """The second part of the header frame, from lazy forward passes: it follows from the model and the versions.

    A model that does not run on shapes alone is measured too; the header then holds the reason.
    """
    header: dict[str, Any]
    try:
        header = {"context": context_memory(source).to_fields(), "active": active_experts(source)}
    except MintError as error:
        log.warning("context.not_traced", reason=str(error))
        header = {"context": str(error), "active": {}}
    if not features:
        return {**header, "features": {}}
    try:
        norms: dict[str, str] | str = preceding_norms(source)
    except MintError as error:
        log.warning("norms.not_traced", reason=str(error))
        norms = str(error)
    return {**header, "features": {"numpy": version("numpy"), "norms": norms}}


def _job(source: Source, rounding: str, header: Mapping[str, Any]) -> Job[Measurement]:
    """The job of a unit; with features if the header has them."""
    measure = Measure(rounding, carried=source.carried)
    if not header["features"]:
        return measure
    traced = isinstance(header["features"]["norms"], dict)
    return _MeasureWithFeatures(measure, norm_gains(source) if traced else {})


@dataclass(frozen=True, slots=True)
class _MeasureWithFeatures(BlockJob[Measurement]):
    measure: Measure
    gains: Mapping[str, npt.NDArray[np.float32]]

    def of_blocks(self, unit: Unit, blocks: Blocks) -> Measurement:
        measurement = self.measure.of_blocks(unit, blocks)
        if not measurement.formats or measurement.nonfinite or not group_size_of(unit.shape[-1]):
            return measurement
        rows, columns = unit.shape[-2:]
        shape = unit.slices, rows, columns
        features = features_of(map(raw, blocks()), shape, unit.dtype, unit.path, self.gains.get(unit.path))
        return replace(measurement, features=features)


def _device(header: Mapping[str, Any], output: Path) -> str:
    """The device of the header; that of an earlier run with the same header otherwise if it includes this one."""
    for path in (output, partial_path(output)):
        earlier = read_header(path, MAGIC) or {}
        device = str(earlier.get("device", ""))
        more = set(kinds_in(device)) >= set(kinds_in(header["device"]))
        if more and {**header, "device": device}.items() <= earlier.items():
            return device
    return str(header["device"])


def _reuse(output: Path, header: dict[str, Any], *, features: bool) -> Analysis:
    """The finished analysis at `output`; `MintError` if it is of another model, version, rounding or device."""
    analysis = read_analysis(output)
    if analysis.rounding != header["rounding"]:
        raise MintError(
            f"{output}: holds an analysis for --rounding {analysis.rounding}, needed one for {header['rounding']}; "
            "choose another --output, or that rounding"
        )
    if features and not analysis.features:
        raise MintError(f"{output}: holds an analysis without features; choose another --output, or go without them")
    other_numpy = features and analysis.features["numpy"] != version("numpy")
    if other_numpy or not header.items() <= (read_header(output, MAGIC) or {}).items():
        raise MintError(
            f"{output}: holds an analysis of another model, dtype, device or version "
            f"({analysis.model_type}, {analysis.device}, mlx {analysis.versions['mlx']}); choose another --output"
        )
    remove_stray(output, MAGIC)
    log.info("analysis.reused", path=str(output))
    return analysis

"""How sensitive the model's output is to each unit, measured without data.

    alpha = KL(model || model with this unit alone stored coarsely) / NRMSE^2

on sequences that the model itself writes, or on random tokens. The KL divergence is the mean over tokens, in nats.
Every probe stands for itself: they are kept as they come, resumed after a kill, and independent of their order.

A model that does not fit in memory at full precision is probed around a base: all units are stored in 8 bits or fewer
(`packed_base.py`), the probed one alone is replaced by its coarse form, and `model` above is the base model.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from mint.analysis.analysis import Analysis
from mint.analysis.probes.packed_base import AUTO, BASES, chosen_base, describe_base
from mint.analysis.probes.probe_file import FULL, MAGIC, SCHEMA, Probe, Probed, probe_of, read_probes, write_probed
from mint.analysis.probes.prober import ProbeJob, Probing, TextJob, coarse_format
from mint.core.errors import MintError
from mint.core.journal import Journal, read_header
from mint.core.log import log
from mint.core.progress import OnProgress, Progress, ignore
from mint.formats.units import Unit
from mint.model.source import Source
from mint.quality.sequences import prefix_of
from mint.run.device_kind import device_kind, versions
from mint.run.executor import Executor, in_process


def probe(
    source: Source,
    analysis: Analysis,
    output: Path,
    *,
    probing: Probing = Probing(),  # noqa: B008, it is frozen
    executor: Executor = in_process,
    on_progress: OnProgress = ignore,
) -> Probed:
    """Probe the units of `source` that may be quantized and write `output`.

    Goes on where a killed run stopped. Raises `MintError` when the analysis is of another model or `output` of
    something else.
    """
    if analysis.model != source.identity:
        raise MintError(f"the analysis is of another model than {source.folder}; analyze this one first")
    probing.check()
    units = probed_units(source.units, probing.most)
    header: dict[str, Any] = {
        "schema": SCHEMA,
        "model": source.identity,
        "dtype": source.dtype,
        "tokens": str(probing),
        "base": probing.base,
        "device": device_kind(),
        "versions": versions(),
        "units": [unit.path for unit in units],
    }
    partial = output.with_name(output.name + ".partial")
    if probing.base == AUTO:
        header["base"] = _begun(header, (output, partial)) or chosen_base(source, AUTO, probing.tokens)
    if output.exists():
        probed = read_probes(output)
        if read_header(output, MAGIC) != header:
            raise MintError(f"{output}: holds other probes ({_described(probed)}); move it away to probe anew")
        return probed
    with Journal(partial, MAGIC, header) as journal:
        probes = {record["path"]: probe_of(record) for record in journal.records}
        pending = [unit for unit in units if unit.path not in probes]
        if pending:
            chosen = replace(probing, base=header["base"])
            for found in _probes(source, chosen, pending, len(probes), executor, on_progress):
                journal.append(asdict(found))
                probes[found.path] = found
        probed = write_probed(output, header, probes)
        journal.path.unlink()
    return probed


def _begun(header: dict[str, Any], paths: Iterable[Path]) -> str:
    """The base of finished or unfinished probes with the same header otherwise; empty if there are none."""
    begun = [read_header(path, MAGIC) for path in paths]
    return next((base for base in (FULL, *BASES) if header | {"base": base} in begun), "")


def _described(probed: Probed) -> str:
    return f"{probed.tokens}, {describe_base(probed.base)}"


def probed_units(units: Sequence[Unit], most: int | None) -> tuple[Unit, ...]:
    """The units worth a probe, in their order: all that may be quantized, or the largest of them."""
    possible = [unit for unit in units if not unit.keep_reason and coarse_format(unit)]
    if most is None or most >= len(possible):
        return tuple(possible)
    chosen = {unit.path for unit in sorted(possible, key=lambda unit: -unit.size)[:most]}
    return tuple(unit for unit in possible if unit.path in chosen)


def _probes(
    source: Source, probing: Probing, units: Sequence[Unit], done: int, executor: Executor, on_progress: OnProgress
) -> Iterator[Probe]:
    total = done + len(units)
    text = TextJob(source, probing, prefix_of(source.folder), on_progress=on_progress)
    on_progress(Progress("probe", done, total, ""))
    ((_, text.tokens),) = executor(source, text, [min(units, key=lambda unit: unit.nbytes)])
    started = perf_counter()
    for count, (unit, found) in enumerate(executor(source, ProbeJob(text, done), units), start=1):
        seconds, started = perf_counter() - started, perf_counter()
        log.debug("unit.probed", unit=unit.path, kl=found.kl, alpha=found.alpha, seconds=round(seconds, 3))
        on_progress(Progress("probe", done + count, total, unit.path))
        yield found

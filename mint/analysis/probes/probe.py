"""Measures the sensitivity of the model's output to each unit, without data.

    alpha = KL(model || model with this unit alone stored coarsely) / NRMSE^2

on sequences that the model itself writes, or on random tokens. The KL divergence is the mean over tokens, in nats.
Probes do not depend on each other: they are kept as they come, resumed after a kill, and made in any order.

A model that does not fit in memory at full precision is probed around a base: all units are stored in 8 bits or fewer
(`packed_base.py`), the probed one alone in its coarse format, and `model` above is the base model.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mint.analysis.analysis import Analysis
from mint.analysis.probes.packed_base import AUTO, BASES, chosen_base, fitting_base
from mint.analysis.probes.probe_file import FULL, MAGIC, SCHEMA, Probe, Probed, read_probes, write_probed
from mint.analysis.probes.prober import BRIEF, ProbeJob, Probing, TextJob, coarse_format
from mint.core.errors import MintError
from mint.core.files import partial_path
from mint.core.journal import Journal, read_header, remove_stray
from mint.core.log import log
from mint.core.progress import OnNote, OnProgress, ignore, say_nothing
from mint.core.records import reading, require_record
from mint.formats.units import Unit
from mint.model.roles import TOWER
from mint.model.source import Source
from mint.quality.sequences import prefix_of
from mint.run.device_kind import device_kind, versions
from mint.run.executor import Executor, in_process
from mint.run.stage import reported


def probe(
    source: Source,
    analysis: Analysis,
    output: Path,
    *,
    probing: Probing = Probing(),  # noqa: B008, it is frozen
    executor: Executor = in_process,
    on_progress: OnProgress = ignore,
    on_note: OnNote = say_nothing,
) -> Probed:
    """Probe the units of `source` that may be quantized and write `output`; resumes after a kill.

    Brief probes in `output` are replaced. Raises `MintError` when the analysis is of another model, `output` of
    something else, or the model changes.
    """
    require_record("open_source", source)
    require_record("read_analysis", analysis)
    if analysis.model != source.identity:
        raise MintError(f"the analysis is of another model than {source.folder}; analyze this one first")
    probing.check()
    units = probed_units(source.units, probing.most)
    partial = partial_path(output)
    header = _header(source, probing, units, (output, partial), executor.model_memory or None)
    if output.exists():
        probed, earlier = read_probes(output), read_header(output, MAGIC) or {}
        if earlier == header:
            remove_stray(output, MAGIC)
            return probed
        if not _is_brief(earlier):
            raise MintError(f"{output}: holds other probes ({probed.tokens}, {probed.origin}); move it away first")
        on_note(f"{output}: the brief probes ({probed.tokens}) are replaced")
    with Journal(partial, MAGIC, header, is_replaceable=_is_brief) as journal:
        with reading(f"{journal.path}: a damaged journal", "remove the file and run the same command again"):
            probes = {probe.path: probe for probe in map(Probe.from_record, journal.records)}
        pending = [unit for unit in units if unit.path not in probes]
        if probes:
            on_note(f"resumes: {len(probes)} of {len(units)} units are probed in {partial}")
        results = _probes(source, replace(probing, base=header["base"]), pending, len(probes), executor, on_progress)
        for unit, result, seconds in reported("probe", results, units, pending, on_progress, cost=lambda unit: 1):
            journal.append(asdict(result))
            probes[unit.path] = result
            log.debug("unit.probed", unit=unit.path, kl=result.kl, alpha=result.alpha, seconds=round(seconds, 3))
        source.files.check()
        probed = write_probed(output, header, probes)
        journal.path.unlink(missing_ok=True)
    return probed


def _header(
    source: Source, probing: Probing, units: Sequence[Unit], paths: Iterable[Path], memory: int | None
) -> dict[str, Any]:
    """The header of the probes; for `auto` with the base of earlier probes at `paths`, if these match otherwise."""
    header: dict[str, Any] = {
        "schema": SCHEMA,
        "model": source.identity,
        "dtype": source.dtype,
        "loader": source.loader,
        "tokens": str(probing),
        "base": probing.base,
        "device": device_kind(),
        "versions": versions(source.packages),
        "units": [unit.path for unit in units],
    }
    earlier = [read_header(path, MAGIC) for path in paths] if probing.base == AUTO else []
    same = next((base for base in (FULL, *BASES) if header | {"base": base} in earlier), probing.base)
    return header | {"base": chosen_base(source, same, probing.tokens, memory)}


def unasked(source: Source, output: Path, probing: Probing, memory: int) -> Probing | None:
    """The probing to do though nobody asks for it: brief by default, around the base that fits `memory`.

    None where no base fits, without any `memory`, and where somebody began other probes for `output`.
    """
    begun = read_header(partial_path(output), MAGIC)
    if not memory or (begun is not None and not _is_brief(begun)):
        return None
    chosen = BRIEF if probing == Probing() else probing
    base = fitting_base(source, chosen.base, chosen.tokens, memory)
    return replace(chosen, base=base) if base else None


def _is_brief(header: Mapping[str, Any]) -> bool:
    return header.get("tokens") == str(BRIEF)


def probed_units(units: Sequence[Unit], most: int | None) -> tuple[Unit, ...]:
    """The units to probe, in their order: all that may be quantized and that text reaches, or the largest of them."""
    possible = [unit for unit in units if not unit.kept and unit.role != TOWER and coarse_format(unit)]
    chosen = {unit.path for unit in sorted(possible, key=lambda unit: -unit.size)[:most]}
    return tuple(unit for unit in possible if unit.path in chosen)


def _probes(
    source: Source, probing: Probing, units: Sequence[Unit], done: int, executor: Executor, on_progress: OnProgress
) -> Iterator[tuple[Unit, Probe]]:
    if units:
        text = TextJob(source, probing, prefix_of(source.folder), on_progress=on_progress)
        ((_, text.tokens),) = executor(source, text, [min(units, key=lambda unit: unit.nbytes)])
        yield from executor(source, ProbeJob(text, done), units)

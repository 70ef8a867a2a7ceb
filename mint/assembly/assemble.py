"""Plan and Source to an MLX model folder.

Everything is built in `<output>.partial` and renamed once it is whole and on the disk (`draft.py`). A journal lists the
written units, each with its digest; the same command checks these against the files and resumes.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import mlx.core as mx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from mint.analysis.unit_jobs import Packed, Quantize, check_analyzed, checksum_of
from mint.assembly.draft import JOURNAL_NAME, TUNED_NAME, Draft, naming_full_disk, read_finished, refuse_foreign
from mint.assembly.reuse import Reuse
from mint.core.errors import DiskFullError, MintError
from mint.core.files import (
    flush,
    partial_path,
    remove_temporary,
    require_new,
    require_outside,
    require_writable,
    write_whole,
)
from mint.core.journal import Journal
from mint.core.log import log
from mint.core.memory import PROCESSES_BYTES, memory_is_short
from mint.core.progress import OnNote, OnProgress, ignore, say_nothing
from mint.core.records import require_record
from mint.exports.card import RECIPE_NAME, card_text, recipe_record
from mint.exports.source_card import read_source_card
from mint.formats.format import Format, TensorSpec
from mint.formats.rounding import ROUNDINGS, Rounding
from mint.formats.units import Unit
from mint.kernels.ready import ready_kernels
from mint.kernels.storage import raw, raw_bytes
from mint.kernels.warmup import WRITE
from mint.model.checkpoint.beside import CARD_NAME, files_beside
from mint.model.checkpoint.manifest import MANIFEST_NAME, PLAN_NAME, Manifest, file_digest, write_manifest
from mint.model.checkpoint.reader import open_weights
from mint.model.checkpoint.shards import INDEX_NAME
from mint.model.checkpoint.verified import VERIFIED_NAME
from mint.model.checkpoint.writer import WeightFiles, disk_full
from mint.model.module_tree import write_config
from mint.model.opening.towers import towers_in, without_towers
from mint.model.source import Source
from mint.plan.plan import Plan, converted, plan_text, quantization_entries
from mint.quality.closeness import Closeness
from mint.quality.sequences import CALIBRATION, JUDGED, TextSize
from mint.run.device_kind import device_kind, versions
from mint.run.executor import Executor, in_process
from mint.run.job import T
from mint.run.stage import reported

_MAGIC = b"MINT assembly\n"
_SETTINGS = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")  # of the source's own quantization
_NOT_COPIED = ("config.json", *_SETTINGS, PLAN_NAME, MANIFEST_NAME, VERIFIED_NAME, RECIPE_NAME)
_NOT_LISTED = (JOURNAL_NAME, TUNED_NAME, MANIFEST_NAME, VERIFIED_NAME)  # in the manifest


def assemble(
    plan: Plan,
    source: Source,
    output: Path | str,
    *,
    reuse: Reuse | None = None,
    executor: Executor = in_process,
    text: TextSize = CALIBRATION,
    memory: int | None = None,
    on_progress: OnProgress = ignore,
    on_note: OnNote = say_nothing,
) -> Manifest:
    """Write the model that `plan` describes to the new folder `output`. It is not verified: see `verify`.

    Units that a folder of `reuse` holds in the planned format are copied, unless they are compensated. Memory is
    bounded by the largest unit, or with compensation by a layer and its activations on the calibration `text`, which a
    model of fewer bits writes where the original does not fit in `memory` (by default this machine's).
    Raises `MintError` when the plan is of another model, the output is anything but the finished model of this plan,
    the disk is too small or the source changes meanwhile; after an interruption the same call resumes.
    """
    require_record("read_plan", plan)
    require_record("open_source", source)
    output = Path(output)
    if output.exists():
        refuse_foreign(output, plan=plan.digest)
        on_note(f"{output} is the finished model of this plan: it is not written again")
        return read_finished(output)
    with drafted(
        plan, source, output, reuse=reuse, executor=executor, text=text, memory=memory, on_progress=on_progress,
        on_note=on_note,
    ) as draft:  # fmt: skip
        return draft.finish()


@contextmanager
def drafted(
    plan: Plan,
    source: Source,
    output: Path,
    *,
    reuse: Reuse | None = None,
    executor: Executor = in_process,
    text: TextSize = CALIBRATION,
    memory: int | None = None,
    on_progress: OnProgress = ignore,
    on_note: OnNote = say_nothing,
) -> Iterator[Draft]:
    """The model of `assemble` before it gets its name, whole and on the disk; no other process may touch it here."""
    _check(plan, source, output)
    if ROUNDINGS[plan.rounding].sequential and executor.lacking:
        raise MintError(
            f"{len(executor.lacking)} shards are not on this machine, which runs the model for --rounding "
            f"{plan.rounding}; copy them to the model's folder here, the first is {executor.lacking[0]}"
        )
    ready_kernels(plan.rounding, on_progress, (WRITE,), {unit.dtype for unit in source.units})
    folder = partial_path(output)
    folder.mkdir(parents=True, exist_ok=True)
    _check_space(folder, plan)
    require_new(output)  # its journal may be gone because another process has just finished it
    base = _text_base(plan, source, text, memory)
    decided = {"text": [text.count, text.window], "base": base}
    header = {"plan": plan.digest, "device": device_kind(), "versions": versions(source.packages), **decided}
    with Journal(folder / JOURNAL_NAME, _MAGIC, header) as journal:
        remove_temporary(folder)
        with source.files.reading(), naming_full_disk(folder, plan.planned_bytes):
            work = reuse or Reuse(), executor, text, base, on_progress, on_note
            manifest = _fill(plan, source, folder, journal, *work)
        yield Draft(folder, output, manifest, source.files)


def _fill(
    plan: Plan,
    source: Source,
    folder: Path,
    journal: Journal,
    reuse: Reuse,
    executor: Executor,
    text: TextSize,
    base: str,
    on_progress: OnProgress,
    on_note: OnNote,
) -> Manifest:
    """Write everything that is not in `folder` yet, and wait until it is on the disk."""
    rounding = _rounding(plan)
    with (
        WeightFiles(folder, plan.layout) as files,
        ThreadPoolExecutor(1, thread_name_prefix="mint-write") as aside,
    ):
        tuned = _tuned(folder, files, plan)
        digests = tuned or _intact(journal, files, plan)
        if digests:
            on_note(f"resumes: {len(digests)} of {len(source.units)} units are in {folder}")
        pending = [unit for unit in source.units if unit.path not in digests]
        measured: list[tuple[Closeness, Closeness | None]] = []  # of this model, and of uniform 4-bit
        if rounding.sequential:
            from mint.assembly.compensated import compensate, tune

            stored = open_weights(folder, [shard.name for shard in plan.layout])
            work = text, base, executor, on_progress, lambda *pair: measured.append(pair)
            packed = compensate(plan, source, pending, stored, files, *work)
        else:
            packed = _packed(plan, source, pending, files, reuse, executor)
        written = _written(packed, partial(_write, journal, files), aside)
        for unit, (format, digest), _ in reported("assemble", written, source.units, pending, on_progress):
            digests[unit.path] = digest
            log.debug("unit.written", unit=unit.path, format=str(format))
        _write_parameters(plan, source, files)
        if rounding.tunes and not tuned:
            files.flush()  # a rerun believes the trained values and reads the codes
            parts = tune(plan, source, stored, text, base, on_progress)
            write_whole(folder / TUNED_NAME, save({name: raw(part) for name, part in parts.items()}))
            digests = _tuned(folder, files, plan)
            measured.clear()
        if rounding.sequential and not measured:
            for _ in compensate(plan, source, [], stored, files, *work):
                raise AssertionError("nothing is pending")
        flushed = aside.submit(files.flush)  # while all is read again
        units = {unit.path: digests[unit.path] for unit in source.units}
        manifest = _finish(plan, source, folder, units, *(measured[-1] if measured else (None, None)))
        flushed.result()
    for file in folder.rglob("*"):  # the files beside the weights too
        flush(file)
    flush(folder)
    return manifest


def _rounding(plan: Plan) -> Rounding:
    """The work that a plan asks for: one that keeps every unit needs no text and no model that runs."""
    return ROUNDINGS["nearest" if plan.keeps_all else plan.rounding]


def _text_base(plan: Plan, source: Source, text: TextSize, memory: int | None) -> str:
    """The base of the model that writes the text of a compensation; empty for other roundings."""
    if not _rounding(plan).needs_model:
        return ""
    from mint.analysis.probes.own_text import text_base

    size = TextSize(text.count + JUDGED, text.window)
    return text_base(source, size, None if memory is None else memory - PROCESSES_BYTES)


def _write(journal: Journal, files: WeightFiles, unit: Packed) -> tuple[Format, str]:
    digest = files.write(unit.tensors, unit.data) if unit.data else unit.sha256 or files.digest(unit.tensors)
    journal.append([unit.path, digest])
    return unit.format, digest


def _written(
    packed: Iterable[tuple[Unit, Packed]], write: Callable[[Packed], T], aside: ThreadPoolExecutor
) -> Iterator[tuple[Unit, T]]:
    """Yield every unit once it is written, with the result of `write`.

    It is written while the next one is packed, unless memory is short; also if packing the next one fails.
    """
    before: tuple[Unit, Future[T]] | None = None
    for unit, packed_unit in packed:
        if before:
            yield before[0], before[1].result()
        before = unit, aside.submit(write, packed_unit)
        del packed_unit  # frees its bytes once they are written
        if memory_is_short():
            before[1].result()
    if before:
        yield before[0], before[1].result()


def _packed(
    plan: Plan, source: Source, units: Sequence[Unit], files: WeightFiles, reuse: Reuse, executor: Executor
) -> Iterator[tuple[Unit, Packed]]:
    """Yield every unit as planned: copied if a folder holds it, else quantized."""
    copied = set()
    for unit, packed in reuse.take(plan, units, files):
        copied.add(unit.path)
        yield unit, packed
    job = Quantize(plan.formats, plan.checksums, plan.rounding, source, files)
    yield from executor(source, job, [unit for unit in units if unit.path not in copied])


def _check(plan: Plan, source: Source, output: Path) -> None:
    require_new(output)
    require_writable(output)
    require_outside(output, source.folder)
    if (plan.model, plan.dtype, plan.loader) != (source.identity, source.dtype, source.loader):
        raise MintError(
            f"the plan is for another model than {source.folder} (found identity {source.identity[:12]}, "
            f"needed {plan.model[:12]}); assemble from the folder that was analyzed, or analyze this one"
        )
    planned = {choice.path: (choice.shape, choice.dtype) for choice in plan.choices}
    if planned != {unit.path: (unit.shape, unit.dtype) for unit in source.units}:
        raise MintError(f"the plan's units are not those of {source.folder}; run mint allocate again")
    for unit in source.units:
        if unit.twin and plan.formats[unit.path] != plan.formats[unit.twin]:
            raise MintError(f"{unit.path} and {unit.twin} are loaded from one weight; give both one format in the plan")


def _check_space(folder: Path, plan: Plan) -> None:
    allocated = sum(file.stat().st_blocks * 512 for file in folder.iterdir())
    if shutil.disk_usage(folder).free + allocated < plan.planned_bytes:
        raise DiskFullError(disk_full(folder, plan.planned_bytes - allocated))


def _intact(journal: Journal, files: WeightFiles, plan: Plan) -> dict[str, str]:
    """The digests of the journal's units whose bytes are in the files; a power cut can lose those."""
    tensors = {choice.path: choice.tensors for choice in plan.choices}
    return {path: digest for path, digest in journal.records if files.digest(tensors[path]) == digest}


def _tuned(folder: Path, files: WeightFiles, plan: Plan) -> dict[str, str]:
    """The digests of all units after the trained scales and biases are in their place; none if nothing is trained yet.

    They are written once all units are whole: so a run that was killed here finds everything in the files.
    """
    try:
        parts = load_file(folder / TUNED_NAME)
    except (FileNotFoundError, SafetensorError):
        return {}
    for choice in plan.choices:
        for tensor in choice.tensors:
            if tensor.name in parts:
                files.write((tensor,), (parts[tensor.name].tobytes(),))
    return {choice.path: files.digest(choice.tensors) for choice in plan.choices}


def _write_parameters(plan: Plan, source: Source, files: WeightFiles) -> None:
    arrays = source.opened.take([parameter.name for parameter in plan.parameters])
    for parameter in plan.parameters:
        array = arrays.pop(parameter.name)
        mx.eval(array)
        check_analyzed(f"parameter {parameter.name} is", checksum_of(array), plan.parameter_checksums[parameter.name])
        files.write((TensorSpec(parameter.name, parameter.dtype, parameter.shape),), (raw_bytes(array),))


def _finish(
    plan: Plan,
    source: Source,
    folder: Path,
    units: Mapping[str, str],
    closeness: Closeness | None,
    uniform: Closeness | None,
) -> Manifest:
    """Write all files beside the weights: index, config, tokenizer, card, plan, manifest."""
    shard_of = {placed.tensor: shard.name for shard in plan.layout for placed in shard.tensors}
    index = {
        "metadata": {
            "total_size": sum(tensor.nbytes for tensor in shard_of),
            "total_parameters": plan.weights,
        },
        "weight_map": dict(sorted((tensor.name, shard) for tensor, shard in shard_of.items())),
    }
    write_whole(folder / INDEX_NAME, json.dumps(index, indent=4).encode())
    names = [tensor.name for tensor in shard_of]
    kept = towers_in(names)
    config = {**without_towers(source.config, names), **quantization_entries(plan)}
    write_config(config, folder, keep_vision_config="vision" in kept)
    for name in files_beside(source.folder, text_only=not kept):
        if name.name not in _NOT_COPIED:  # copied as they are: loading and saving a tokenizer again can change it
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source.folder / name, folder / name)
    task = "image-text-to-text" if "vision" in kept else "text-generation"
    (folder / CARD_NAME).write_text(card_text(plan, read_source_card(source.folder), closeness, task, uniform))
    (folder / RECIPE_NAME).write_text(json.dumps(recipe_record(plan, closeness), indent=1) + "\n")
    (folder / PLAN_NAME).write_text(plan_text(plan))
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    manifest = Manifest(
        plan=plan.digest,
        model=plan.model,
        device=device_kind(),
        versions=versions(source.packages),
        budget_bytes=plan.budget_bytes,
        weight_bytes=plan.planned_bytes,
        files={name: file_digest(folder / name) for name in files if name not in _NOT_LISTED},
        units=units,
        dropped_towers=plan.dropped_towers,
        closeness=closeness.to_dict() if closeness else None,
        uniform={"weight_bytes": converted(plan).planned_bytes, **uniform.to_dict()} if uniform else None,
    )
    write_manifest(manifest, folder)
    return manifest

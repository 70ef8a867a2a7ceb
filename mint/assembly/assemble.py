"""Plan and Source to an MLX model folder.

Everything is built in `<output>.partial` and renamed when it is whole and on the disk. A journal lists the units
that are written, each with its digest; the same command goes on from there after checking them against the files.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx

from mint.analysis.unit_jobs import Packed, Quantize, ready_kernels
from mint.assembly.reuse import Reuse
from mint.core.errors import DiskFullError, MintError
from mint.core.files import flush
from mint.core.journal import Journal
from mint.core.log import log
from mint.core.memory import memory_is_short
from mint.core.progress import OnProgress, Progress, ignore
from mint.formats.format import Format, TensorSpec
from mint.formats.rounding import ROUNDINGS
from mint.formats.units import Unit
from mint.kernels.storage import raw_bytes
from mint.model.checkpoint.manifest import PLAN_NAME, Manifest, file_digest, write_manifest
from mint.model.checkpoint.reader import open_stored
from mint.model.checkpoint.shards import BESIDE, INDEX_NAME
from mint.model.checkpoint.writer import WeightFiles, disk_full
from mint.model.module_tree import write_config
from mint.model.source import Source
from mint.plan.plan import Plan, plan_text, quantization_entries
from mint.run.device_kind import device_kind, versions
from mint.run.executor import Executor, in_process

_MAGIC = b"MINT assembly\n"
_JOURNAL_NAME = "assembly.journal"
_NOT_COPIED = ("config.json", "hf_quant_config.json", PLAN_NAME)


def assemble(
    plan: Plan,
    source: Source,
    output: Path | str,
    *,
    reuse: Reuse | None = None,
    executor: Executor = in_process,
    on_progress: OnProgress = ignore,
) -> Manifest:
    """Write the model that `plan` describes to the folder `output`, which must not exist.

    Units that a folder of `reuse` holds in the planned format are copied, unless they are compensated. Memory is
    bounded by the largest unit, or with compensation by a layer and what the tokens are there.
    Raises `MintError` when the plan is of another model, the output exists or the disk is too small; what was written
    before an interruption is kept and gone on with.
    """
    output = Path(output)
    _check(plan, source, output)
    ready_kernels(plan.rounding, on_progress)
    partial = partial_folder(output)
    partial.mkdir(parents=True, exist_ok=True)
    _check_space(partial, plan)
    header = {"plan": plan.digest, "device": device_kind(), "versions": versions()}
    with (
        Journal(partial / _JOURNAL_NAME, _MAGIC, header) as journal,
        WeightFiles(partial, plan.layout) as files,
        ThreadPoolExecutor(1, thread_name_prefix="mint-write") as aside,
    ):
        written = _still_there(journal, files, plan)
        pending = [unit for unit in source.units if unit.path not in written]
        total = sum(unit.nbytes for unit in source.units)
        done = total - sum(unit.nbytes for unit in pending)
        on_progress(Progress("assemble", done, total, ""))
        sizes = {unit.path: unit.nbytes for unit in source.units}

        def write(unit: Packed) -> str:
            digest = files.write(unit.tensors, unit.data, unit.sha256)
            journal.append([unit.path, digest])
            return digest

        packed = _packed(plan, source, partial, pending, reuse or Reuse(), executor, on_progress)
        for unit, format, digest in _written(packed, write, aside):
            written[unit.path] = digest
            done += sizes[unit.path]
            log.debug("unit.written", unit=unit.path, format=str(format))
            on_progress(Progress("assemble", done, total, unit.path))
        _write_parameters(plan, source, files)
        flushed = aside.submit(files.flush)  # while all is read again
        manifest = _finish(plan, source, partial, {unit.path: written[unit.path] for unit in source.units})
        flushed.result()
    for file in partial.iterdir():  # what lies beside the weights too
        flush(file)
    (partial / _JOURNAL_NAME).unlink()
    flush(partial)
    partial.rename(output)
    flush(output.parent)
    return manifest


def refuse_existing(output: Path) -> None:
    """Raise `MintError` when there is anything at `output`."""
    if output.exists():
        raise MintError(f"{output} exists; nothing is ever overwritten. Choose another --output or move it away")


def partial_folder(output: Path) -> Path:
    """The folder of the unfinished model for `output`."""
    return output.with_name(output.name + ".partial")


def _written(
    packed: Iterable[tuple[Unit, Packed]], write: Callable[[Packed], str], aside: ThreadPoolExecutor
) -> Iterator[tuple[Unit, Format, str]]:
    """Every unit once it is in its place, with its format and the digest of its bytes.

    It is written while the next one is packed, unless memory is short; also when the next one is never packed.
    """
    before: tuple[Unit, Format, Future[str]] | None = None
    for unit, packed_unit in packed:
        if before:
            yield before[0], before[1], before[2].result()
        before = unit, packed_unit.format, aside.submit(write, packed_unit)
        del packed_unit  # its bytes go once they are written
        if memory_is_short():
            before[2].result()
    if before:
        yield before[0], before[1], before[2].result()


def _packed(
    plan: Plan,
    source: Source,
    partial: Path,
    units: Sequence[Unit],
    reuse: Reuse,
    executor: Executor,
    on_progress: OnProgress,
) -> Iterator[tuple[Unit, Packed]]:
    """Every unit as planned: copied where a folder holds it, quantized where none does."""
    if ROUNDINGS[plan.rounding].sequential:
        from mint.assembly.compensated import compensate

        stored = open_stored(partial)
        yield from compensate(
            plan,
            source,
            units,
            lambda unit, format: stored.dequantized(unit.path, format),
            executor=executor,
            on_progress=on_progress,
        )
        return
    taken = set()
    for unit, packed in reuse.take(plan, units):
        taken.add(unit.path)
        yield unit, packed
    formats = {choice.path: choice.format for choice in plan.choices}
    yield from executor(source, Quantize(formats, plan.rounding), [unit for unit in units if unit.path not in taken])


def _check(plan: Plan, source: Source, output: Path) -> None:
    refuse_existing(output)
    if plan.model != source.identity or plan.dtype != source.dtype:
        raise MintError(
            f"the plan is for another model than {source.folder} (found identity {source.identity[:12]}, "
            f"needed {plan.model[:12]}); assemble from the folder that was analyzed, or analyze this one"
        )
    planned = {choice.path: (choice.shape, choice.dtype) for choice in plan.choices}
    if planned != {unit.path: (unit.shape, unit.dtype) for unit in source.units}:
        raise MintError(f"the plan's units are not those of {source.folder}; run mint allocate again")


def _check_space(partial: Path, plan: Plan) -> None:
    there = sum(file.stat().st_blocks * 512 for file in partial.iterdir())
    free = shutil.disk_usage(partial).free
    if free + there < plan.planned_bytes:
        raise DiskFullError(disk_full(partial, plan.planned_bytes - there))


def _still_there(journal: Journal, files: WeightFiles, plan: Plan) -> dict[str, str]:
    """Units of the journal whose bytes are really in the files: a power cut may have kept the one without the other."""
    tensors = {choice.path: choice.tensors for choice in plan.choices}
    return {path: digest for path, digest in journal.records if files.digest(tensors[path]) == digest}


def _write_parameters(plan: Plan, source: Source, files: WeightFiles) -> None:
    arrays = source.opened.take([parameter.name for parameter in plan.parameters])
    for parameter in plan.parameters:
        array = arrays.pop(parameter.name)
        mx.eval(array)
        files.write((TensorSpec(parameter.name, parameter.dtype, parameter.shape),), (raw_bytes(array),))


def _finish(plan: Plan, source: Source, partial: Path, units: Mapping[str, str]) -> Manifest:
    """Everything beside the weights: index, config, tokenizer, card, plan, manifest."""
    shards = plan.layout
    weight_map = dict(sorted((placed.tensor.name, shard.name) for shard in shards for placed in shard.tensors))
    index = {
        "metadata": {
            "total_size": sum(placed.tensor.nbytes for shard in shards for placed in shard.tensors),
            "total_parameters": plan.weights,
        },
        "weight_map": weight_map,
    }
    (partial / INDEX_NAME).write_text(json.dumps(index, indent=4))
    keeps_vision = any("vision_tower" in name for name in weight_map)
    write_config({**source.config, **quantization_entries(plan)}, partial, keep_vision_config=keeps_vision)
    for pattern in BESIDE:  # copied as it is, since loading and saving a tokenizer again can change it
        for file in sorted(source.folder.glob(pattern)):
            if file.name not in _NOT_COPIED and not file.name.endswith(".index.json") and file.is_file():
                shutil.copyfile(file, partial / file.name)
    (partial / "README.md").write_text(_card(plan))
    (partial / PLAN_NAME).write_text(plan_text(plan))
    names = sorted(file.name for file in partial.iterdir() if file.name not in (_JOURNAL_NAME, "mint.json"))
    manifest = Manifest(
        plan=plan.digest,
        model=plan.model,
        device=device_kind(),
        versions=versions(),
        budget_bytes=plan.budget_bytes,
        weight_bytes=plan.planned_bytes,
        files={name: file_digest(partial / name) for name in names},
        units=units,
    )
    write_manifest(manifest, partial)
    return manifest


def _card(plan: Plan) -> str:
    used = Counter(str(choice.format) for choice in plan.choices)
    rows = "\n".join(f"| {name} | {count} |" for name, count in sorted(used.items()))
    return (
        "---\nlibrary_name: mlx\npipeline_tag: text-generation\ntags:\n- mlx\n- mint\n---\n\n"
        f"Quantized by MINT to {plan.planned_bytes} bytes of weights "
        f"({plan.bits_per_weight:.2f} bits per weight), budget {plan.budget_bytes} bytes.\n\n"
        f"| format (bits/group) | modules |\n|---|---|\n{rows}\n"
    )

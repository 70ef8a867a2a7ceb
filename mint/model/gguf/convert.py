"""Makes a folder of transformers' layout from GGUF files, once: it stays in the cache, and is opened like any other.

Tensors are read in blocks of rows from the mapped files, so memory is bounded whatever their size. ggml's order of
rows, its names and its shift of norms are undone on the way.
"""

# E experts, R rows, B bytes of a row

import fcntl
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mint.core.errors import DiskFullError, MintError
from mint.core.files import flush, partial_path, write_all
from mint.core.progress import OnProgress, Progress, ignore
from mint.core.records import reading
from mint.formats.format import Format, TensorSpec
from mint.formats.layout import lay_out
from mint.model.checkpoint.beside import files_beside
from mint.model.checkpoint.shards import read_shards
from mint.model.checkpoint.writer import disk_full
from mint.model.config import check_config
from mint.model.gguf.architectures import Architecture, config_in
from mint.model.gguf.blocks import PLAIN, affine_format, affine_parts, decoded, decoded_dtype, is_decodable
from mint.model.gguf.files import conversion_of, identities
from mint.model.gguf.metadata import GgufModel, read_gguf
from mint.model.gguf.vocabulary import write_tokenizer
from mint.model.storages.storage import GGUF
from mint.model.storages.super_blocks import K_TYPES

_BLOCK_BYTES = 8 << 20  # of source rows, converted at once
_DIGITS = 13  # of the offsets in a shard
_LOCK = "lock"  # in the folder of a conversion
_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")  # the config has them


@dataclass(frozen=True, slots=True)
class _Weight:
    """A tensor to write, as some rows of one of ggml's: a whole one, or that of an expert."""

    name: str
    rows: npt.NDArray[Any]  # (R, B) bytes, or (R, C) numbers of a plain type
    kind: str  # ggml's type
    shape: tuple[int, ...]
    heads: int = 0  # ggml has their rows in pairs; 0 for rows in order
    offset: float = 0.0  # to subtract

    @property
    def format(self) -> Format | None:
        """The format of MLX that keeps its blocks."""
        return affine_format(self.kind) if self.name.endswith(".weight") and len(self.shape) > 1 else None

    @property
    def is_in_super_blocks(self) -> bool:
        """True for a matrix whose bytes are written as they are."""
        return self.kind.lower() in K_TYPES and self.name.endswith(".weight") and len(self.shape) > 1

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The tensors of safetensors that hold it."""
        if self.format:
            return self.format.tensors(self.name.removesuffix(".weight"), self.shape, "F16")
        if self.is_in_super_blocks:
            return (TensorSpec(f"{self.name}.{self.kind.lower()}", "U8", self.rows.shape),)
        return (TensorSpec(self.name, PLAIN.get(self.kind, decoded_dtype(self.kind)), self.shape),)

    def pieces(self) -> Iterator[tuple[npt.NDArray[np.uint8], ...]]:
        """The bytes of its tensors, some rows at a time, in the order of transformers."""
        order = np.arange(len(self.rows))
        if self.heads:
            order = order.reshape(self.heads, -1, 2).swapaxes(1, 2).reshape(-1)
        step = max(1, _BLOCK_BYTES // max(1, self.rows[:1].nbytes))
        for start in range(0, len(order), step):
            rows = self.rows[order[start : start + step]]
            if self.format:
                yield affine_parts(rows, self.kind)
            elif self.is_in_super_blocks:
                yield (rows,)
            elif self.kind in PLAIN:
                plain = rows - np.float32(self.offset) if self.offset else rows
                yield (np.ascontiguousarray(plain).view(np.uint8).reshape(len(rows), -1),)
            else:
                yield (decoded(rows, self.kind),)


def converted(files: Sequence[Path], on_progress: OnProgress = ignore, *, reserve_bytes: int = 0) -> Path:
    """The folder of the model in these GGUF files: in the cache, or converted now.

    `reserve_bytes` of the disk stay free. Raises `MintError` for an unknown architecture or tokenizer, and for damaged
    files.
    """
    folder = conversion_of(files)
    if _is_whole(folder):
        return folder
    with _alone(folder.parent):
        if not _is_whole(folder):
            _convert(files, folder, on_progress, reserve_bytes)
    return folder


def _is_whole(folder: Path) -> bool:
    """True for a conversion with all its bytes; a folder of the cache may have lost some."""
    try:
        check_config(folder)
        return bool(read_shards(folder))
    except (OSError, MintError):
        return False


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold `folder` as its only process; the end of a process, by any signal, frees it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _convert(files: Sequence[Path], folder: Path, on_progress: OnProgress, reserve_bytes: int) -> None:
    before, model = identities(files), read_gguf(files)
    architecture, config = config_in(model)
    with reading(f"{files[0]}: its tensors cannot be read", "download it again"):
        weights = _weights(model, architecture, config)
    partial = partial_path(folder)
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    try:
        _write_tokenizer(model, partial)
        _write_weights(weights, partial, on_progress, reserve_bytes)
        config["quantization_config"] = {"quant_method": GGUF, **_entries(weights)}
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        if identities(files) != before:
            raise MintError(f"{files[0]}: changed while it was converted; run the same command again")
        for path in (*partial.rglob("*"), partial):
            flush(path)
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _weights(model: GgufModel, architecture: Architecture, config: dict[str, Any]) -> list[_Weight]:
    kinds = {tensor.tensor_type.name: name for name, tensor in model.tensors.items()}
    for kind, first in ((kind, first) for kind, first in kinds.items() if not is_decodable(kind)):
        fault = f"the tensor {first} is of ggml's type {kind}, which mint does not decode"
        raise MintError(f"{model.path}: {fault}; needed: the original model in safetensors format")
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    weights = []
    for ggml_name, tensor in model.tensors.items():
        if ggml_name in _FACTORS:
            continue
        name, shape, module = architecture.name(ggml_name), model.shape(ggml_name), ggml_name.split(".")[-2]
        if not name:
            raise MintError(f"{model.path}: the tensor {ggml_name} is not known; needed: the original model")
        permuted = heads.get(module, 0) if architecture.is_permuted else 0
        offset = architecture.norm_offset if ggml_name.endswith("norm.weight") else 0.0
        kind, data = tensor.tensor_type.name, tensor.data
        if "*" in name:
            for expert in range(shape[0]):
                weights.append(_Weight(name.replace("*", str(expert)), data[expert], kind, shape[1:]))
            continue
        shape = (1, *shape) if name.endswith("shared_expert_gate.weight") and len(shape) == 1 else shape
        weights.append(_Weight(name, data.reshape(shape[0], -1), kind, shape, permuted, offset))
    return weights


def _write_weights(weights: Sequence[_Weight], folder: Path, on_progress: OnProgress, reserve_bytes: int) -> None:
    layout = lay_out([weight.tensors for weight in weights], digits=_DIGITS)
    total, done = sum(shard.nbytes for shard in layout), 0
    if shutil.disk_usage(folder).free < total + reserve_bytes:
        raise DiskFullError(disk_full(folder, total))
    places = {placed.tensor: (shard.name, placed.offset) for shard in layout for placed in shard.tensors}
    for shard in layout:
        (folder / shard.name).write_bytes(shard.head)
    for weight in weights:
        positions = [places[tensor] for tensor in weight.tensors]
        offsets = [offset for _, offset in positions]
        with (folder / positions[0][0]).open("r+b") as file:
            for pieces in weight.pieces():
                for index, piece in enumerate(pieces):
                    write_all(file.fileno(), piece.tobytes(), offsets[index])
                    offsets[index] += piece.nbytes
                    done += piece.nbytes
        on_progress(Progress("convert", done, total, weight.name))


def _write_tokenizer(model: GgufModel, folder: Path) -> None:
    """The tokenizer and other small files beside the GGUF file, or that of the file itself."""
    beside = model.path.parent
    if (beside / "tokenizer.json").is_file():
        for name in files_beside(beside, text_only=True):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(beside / name, folder / name)
        return
    write_tokenizer(model, folder)


def _entries(weights: Sequence[_Weight]) -> dict[str, Any]:
    """The format of most weights that keep their blocks, and of those modules that have another one."""
    formats = {weight.name.removesuffix(".weight"): weight.format for weight in weights if weight.format}
    if not formats:
        return {}
    usual = Counter(formats.values()).most_common(1)[0][0]
    return usual.parameters() | {path: form.parameters() for path, form in formats.items() if form != usual}

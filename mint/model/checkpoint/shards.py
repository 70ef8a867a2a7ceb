"""The safetensors files of a model: their headers, read and checked before any long work begins.

Source of the format: the safetensors README ("Format"): 8 bytes little-endian header length N, N bytes of JSON,
then the data. Offsets count from the end of the header; the data has no holes, no overlaps and no rest.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

from mint.core.errors import MintError
from mint.core.files import naming, read_json, sha256_of
from mint.formats.format import ITEMSIZE

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
SAMPLE_BYTES = 65_536
SAMPLES = 16
INDEX_NAME = "model.safetensors.index.json"
PATTERN = "model*.safetensors"  # mlx_lm loads these; it ignores other names in silence
LFS_MARK = b"version https://git-lfs"  # the first bytes of a pointer that git leaves in place of a file
_MAX_NUMBER = 1 << 63
_LONGEST_NAME = 255  # of a file


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """One tensor on disk: `offset` counts from the start of the file `shard`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file: its size, the digest of its header, and of bytes sampled from its data."""

    name: str
    nbytes: int
    header_digest: str
    sample_digest: str
    tensors: tuple[SourceTensor, ...]


def read_shards(folder: Path) -> tuple[Shard, ...]:
    """All shards of the model in `folder`, those that its index names included, sorted by name.

    Reads headers and samples only. Raises `MintError` when a shard is missing, truncated or malformed, or when two
    shards hold one name.
    """
    listed = read_index(folder)
    present = shard_names(folder)
    if missing := sorted(set(listed.values()) - set(present)):
        names = f"{len(missing)} shard(s) that are missing, first {missing[0]}"
        raise MintError(f"{folder}: {INDEX_NAME} names {names}; download the model again or copy them there")
    if not present:
        others = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise MintError(f"{folder}: no {PATTERN} found (found {others}); needed: a model in safetensors format")
    shards = tuple(read_shard(folder, name) for name in present)
    owner: dict[str, str] = {}
    for shard in shards:
        for tensor in shard.tensors:
            if owner.setdefault(tensor.name, shard.name) != shard.name:
                files = f"{owner[tensor.name]} and in {shard.name}"
                raise MintError(f"{folder}: tensor {tensor.name} is in {files}; remove the one of another model")
    for name, shard_name in listed.items():
        if owner.get(name) != shard_name:
            fault = f"puts tensor {name} in {shard_name}, found {owner.get(name, 'nowhere')}"
            raise MintError(f"{folder}: {INDEX_NAME} {fault}; download the model again")
    return shards


def shard_names(folder: Path) -> list[str]:
    """The weight files in `folder`, as paths relative to it: those of mlx_lm's pattern, and those of the index."""
    indexed = {name for name in read_index(folder).values() if (folder / name).is_file()}
    return sorted(indexed | {path.name for path in folder.glob(PATTERN)})


def tensors_of(shards: Iterable[Shard]) -> dict[str, SourceTensor]:
    """Every tensor of some shards by its name."""
    return {tensor.name: tensor for shard in shards for tensor in shard.tensors}


def identity(shards: Iterable[Shard], config_text: bytes) -> str:
    """SHA-256 of the config and of every shard's name, size, header and sampled bytes: the model's identity."""
    digest = hashlib.sha256(hashlib.sha256(config_text).digest())
    for shard in shards:
        digest.update(f"{shard.name}\0{shard.nbytes}\0{shard.header_digest}\0{shard.sample_digest}\n".encode())
    return digest.hexdigest()


def read_index(folder: Path) -> dict[str, str]:
    """The shard of every tensor by the index of the model in `folder`; empty without an index.

    The only index of another name, such as `pytorch_model.safetensors.index.json`, serves where the usual one is not.
    """
    others = [] if (folder / INDEX_NAME).exists() else sorted(folder.glob("*.safetensors.index.json"))
    path = others[0] if len(others) == 1 else folder / INDEX_NAME
    if not path.exists():
        return {}
    record = read_json(path, "needed: a safetensors index; download it again or remove it")
    try:
        listed = record["weight_map"]
        index = {str(name): str(shard) for name, shard in listed.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise MintError(f"{path}: not a safetensors index ({error!r:.200}); download it again or remove it") from error
    for shard in set(index.values()):
        hidden = any(part.startswith(".") for part in PurePosixPath(shard).parts)
        if PurePosixPath(shard).is_absolute() or hidden or "\0" in shard or len(shard) > _LONGEST_NAME:
            raise MintError(f"{path}: names the shard {shard!r:.200}, no file of the folder; download it again")
    return index


def read_shard(folder: Path, name: str) -> Shard:
    """The shard of this name in `folder`, by its header and samples; `MintError` when it is truncated or malformed."""
    path = folder / name
    header, nbytes = read_header(path)
    tensors = _parse_header(path, name, header, nbytes)
    samples = hashlib.sha256()
    with naming(path), path.open("rb") as file:
        for start, length in sampled_ranges(8 + len(header), nbytes):
            file.seek(start)
            samples.update(file.read(length))
    return Shard(name, nbytes, sha256_of([header]), samples.hexdigest(), tensors)


def read_header(path: Path) -> tuple[bytes, int]:
    """The header of a safetensors file, and how many bytes the file has; `MintError` when it is not whole."""
    nbytes = path.stat().st_size
    with naming(path), path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if prefix + file.read(len(LFS_MARK) - 8) == LFS_MARK:
            remedy = "run git lfs pull in that folder, or download the model with hf download"
            raise MintError(f"{path}: a Git LFS pointer, the weights themselves are not there; {remedy}")
        if len(prefix) < 8 or length > min(nbytes - 8, MAX_HEADER_BYTES):
            lengths = f"the header claims {length} bytes, the file has {nbytes}"
            raise MintError(f"{path}: not a whole safetensors file: {lengths}; download it again")
        file.seek(8)
        return file.read(length), nbytes


def sampled_ranges(data_start: int, nbytes: int) -> list[tuple[int, int]]:
    """Start and length of the samples of a file of so many bytes; they overlap in a small one."""
    span = max(nbytes - data_start - SAMPLE_BYTES, 0)
    starts = [data_start + span * index // (SAMPLES - 1) for index in range(SAMPLES)]
    return [(start, min(SAMPLE_BYTES, nbytes - start)) for start in starts]


def _parse_header(path: Path, shard: str, header: bytes, file_nbytes: int) -> tuple[SourceTensor, ...]:
    try:
        entries = dict[str, Any](json.loads(header).items())
    except (ValueError, AttributeError, RecursionError) as error:
        raise MintError(f"{path}: its header is not JSON ({error!s:.200}); download it again") from error
    data_start = 8 + len(header)
    items = [(name, entry) for name, entry in entries.items() if name != "__metadata__"]
    tensors = [_parse_entry(path, shard, name, entry, data_start) for name, entry in items]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    end = data_start
    for tensor in tensors:
        if tensor.offset != end:
            fault = "overlaps the tensor" if tensor.offset < end else "leaves a hole"
            start = f"tensor {tensor.name} starts at byte {tensor.offset}, needed {end}: it {fault} before it"
            raise MintError(f"{path}: {start}; the file is damaged, download it again")
        end += tensor.nbytes
    if end != file_nbytes:
        last = tensors[-1].name if tensors else "none"
        fault = "truncated" if file_nbytes < end else "longer than its header says"
        sizes = f"the header needs {end} bytes, the file has {file_nbytes} (last tensor: {last})"
        raise MintError(f"{path}: {sizes}; it is {fault}, download it again")
    return tuple(tensors)


def _parse_entry(path: Path, shard: str, name: str, entry: Any, data_start: int) -> SourceTensor:
    try:
        dtype = str(entry["dtype"])
        shape = tuple(map(_number, entry["shape"]))
        begin, end = map(_number, entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise MintError(f"{path}: tensor {name} has a malformed entry ({error!r:.200}); download it again") from error
    if dtype not in ITEMSIZE:
        raise MintError(f"{path}: tensor {name} has dtype {dtype:.40}; needed one of {', '.join(ITEMSIZE)}")
    needed = prod(shape) * ITEMSIZE[dtype]
    if needed >= _MAX_NUMBER:
        raise MintError(f"{path}: tensor {name} has a malformed entry (more than 2^63 bytes); download it again")
    if begin < 0 or end - begin != needed or any(size < 0 for size in shape):
        sizes = f"of shape {list(shape)} and dtype {dtype} needs {needed} bytes, its offsets give {end - begin}"
        raise MintError(f"{path}: tensor {name} {sizes}; the file is damaged, download it again")
    return SourceTensor(name, dtype, shape, shard, data_start + begin, needed)


def _number(value: Any) -> int:
    """A size or an offset, which JSON has as a whole number; `ValueError` for anything else."""
    if type(value) is not int or abs(value) >= _MAX_NUMBER:
        raise ValueError(f"{value!r:.40} is not a size")
    return value

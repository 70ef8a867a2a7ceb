"""The settings and tensors of a model in one or several GGUF files.

A setting that nothing reads may change what the model computes, so every one that belongs to the architecture has to
be read once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mint.core.errors import MintError
from mint.core.records import MALFORMED
from mint.core.version import install_command
from mint.model.gguf.extent import check_extent

if TYPE_CHECKING:
    from gguf import ReaderTensor

_REQUIRED = object()
_SWAPPED = "S"  # the reader's word; it swaps plain numbers, but not those in blocks
# by `general.type`, with what to do
_KINDS = {
    "adapter": "a LoRA adapter, not a model; needed: the model that it is merged into (llama-export-lora)",
    "mmproj": "the vision or audio tower of a model; needed: the file of the text model",
    "imatrix": "the statistics of a calibration, not a model; needed: the file of the model",
}
_TOLD_BY_TENSORS = ("vocab_size",)


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A model: its settings by key, and its tensors by ggml's names, over the mapped files."""

    path: Path
    values: dict[str, Any]
    tensors: "dict[str, ReaderTensor]"
    _read: set[str] = field(default_factory=lambda: set(_TOLD_BY_TENSORS))

    @property
    def architecture(self) -> str:
        """The name that llama.cpp gives to the architecture."""
        return str(self.values.get("general.architecture", ""))

    def get(self, key: str, default: Any = _REQUIRED) -> Any:
        """A setting of the architecture; floats have the decimals that were written as float32."""
        self._read.add(key)
        value = self.values.get(f"{self.architecture}.{key}", default)
        if value is _REQUIRED:
            raise MintError(f"{self.path}: no {self.architecture}.{key} found; needed: a complete GGUF model")
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, rows before columns; `MintError` for one that is not there."""
        if name not in self.tensors:
            raise MintError(f"{self.path}: {len(self.tensors)} tensors and no {name}; needed: a complete GGUF model")
        return tuple(int(size) for size in reversed(self.tensors[name].shape))

    def numbers(self, name: str) -> list[float]:
        """The values of a small float32 tensor."""
        return [float(str(value)) for value in np.asarray(self.tensors[name].data, np.float32)]

    def check_read(self) -> None:
        """Raise `MintError` for a setting of the architecture that was not read."""
        prefix = f"{self.architecture}."
        own = {key.removeprefix(prefix): value for key, value in self.values.items() if key.startswith(prefix)}
        for key in sorted(own.keys() - self._read):
            fault = f"the setting {prefix}{key} = {own[key]!r:.60} is not known to mint, which may change the model"
            raise MintError(f"{self.path}: {fault}; needed: the original model in safetensors format")


def _check_kind(path: Path, values: dict[str, Any]) -> None:
    """Raise `MintError` for a file that says that it is no language model."""
    kind = str(values.get("general.type", "model"))
    kind = "mmproj" if values.get("general.architecture") == "clip" else kind
    if kind != "model":
        raise MintError(f"{path}: {_KINDS.get(kind, f'a GGUF file of the type {kind}, not a model')}")


def read_gguf(paths: Sequence[Path]) -> GgufModel:
    """The model in these files, the first of which has the settings; `MintError` for files that are not GGUF."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise MintError(f"{paths[0]}: a GGUF model; needed to read it: {install_command('gguf')}") from error
    try:
        for path in paths:
            check_extent(path)
        readers = [GGUFReader(path) for path in paths]
        values = {name: field.contents() for name, field in readers[0].fields.items()}
    except (*MALFORMED, MemoryError) as error:
        raise MintError(f"{paths[0]}: not a GGUF file that can be read ({error!s:.200}); download it again") from error
    for path, reader in zip(paths, readers, strict=True):
        if reader.byte_order == _SWAPPED:
            fault = "its bytes are in the order of another processor (big-endian)"
            raise MintError(f"{path}: {fault}; convert a copy of it: gguf-convert-endian {path} little")
    _check_kind(paths[0], values)
    tensors = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
    for path, reader in zip(paths, readers, strict=True):
        end = max((tensor.data_offset + tensor.n_bytes for tensor in reader.tensors), default=0)
        if end > path.stat().st_size:
            raise MintError(
                f"{path}: {end} bytes needed, found {path.stat().st_size}; it is cut off, download it again"
            )
    count = values.get("split.tensors.count", len(tensors))
    if count != len(tensors):
        raise MintError(f"{paths[0]}: {len(tensors)} of {count} tensors are there; needed: all parts of the model")
    return GgufModel(paths[0], values, tensors)

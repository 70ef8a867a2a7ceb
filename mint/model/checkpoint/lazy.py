"""The tensors of a shard as lazy MLX arrays."""

import io
from pathlib import Path
from typing import Any

import mlx.core as mx

from mint.core.errors import MintError, is_failed_read
from mint.model.checkpoint.shards import Shard, read_header

READ_AT_ONCE = ("F8_E5M2",)
_REFUSED = ("F64",)  # mlx 0.32 has no such arrays on a GPU, and loads none
_UNKNOWN, _KNOWN = b'"F8_E5M2"', b'"F8_E4M3"'  # mlx 0.32 loads either as bytes, but refuses the name of the first


def lazy_arrays(folder: Path, shard: Shard) -> dict[str, mx.array]:
    """The tensors by name in the order of the file; those of 8-bit floats are bytes.

    A shard with a dtype whose name MLX refuses is read at once, and its arrays still name it in a graph. Raises
    `MintError` for a shard that cannot be read, and for a dtype that MLX lacks.
    """
    path = folder / shard.name
    if wide := next((tensor for tensor in shard.tensors if tensor.dtype in _REFUSED), None):
        fault = f"{path}: tensor {wide.name} is {wide.dtype}, which MLX does not load"
        raise MintError(f"{fault}; needed: the same model in float32 or less (torch.Tensor.float)")
    arrays: Any
    try:
        if all(tensor.dtype not in READ_AT_ONCE for tensor in shard.tensors):
            arrays = mx.load(str(path))
        else:
            arrays = mx.load(_Renamed(path), format="safetensors")
            arrays = {name: mx.stop_gradient(array) for name, array in arrays.items()}
    except RuntimeError as error:
        if not is_failed_read(error):
            raise
        fault = f"{path}: cannot be read (mlx says: {error})"
        raise MintError(f"{fault}; check the disk, then run the same command again") from error
    return {tensor.name: arrays[tensor.name] for tensor in shard.tensors}


class _Renamed(io.FileIO):
    """A shard whose header has the name of a dtype that MLX loads."""

    def __init__(self, path: Path) -> None:
        header = read_header(path)[0].replace(_UNKNOWN, _KNOWN)  # both names have the same length
        self._head = len(header).to_bytes(8, "little") + header
        super().__init__(path, "rb")

    def readinto(self, buffer: Any) -> int:
        start, view = self.tell(), memoryview(buffer).cast("B")
        count = super().readinto(view) or 0
        head = self._head[start : start + count]
        view[: len(head)] = head
        return count

    def read(self, size: int | None = -1) -> bytes:
        start, data = self.tell(), super().read(size) or b""
        head = self._head[start : start + len(data)]
        return head + data[len(head) :]

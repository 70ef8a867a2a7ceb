"""Writes a folder with the config, names, shapes and headers of a large model, and sparse data.

    python -m tools.models.make_shape OUT --shape qwen3-30b-a3b

Matrices are holes, which read as zeros and take no disk space; vectors, routers and scales in float32 are random.
With --random all floats are random. Configurations and tensor names follow public checkpoints (`tools.models.shapes`).
Shards are filled in the order of the layers.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mint.core.errors import MintError
from mint.formats.format import TensorSpec
from mint.model.checkpoint.shards import INDEX_NAME
from tools.models.make_smollm2 import new_folder, say
from tools.models.shapes import SHAPES, Shape

SHARD_BYTES = 5 * 10**9
_ROUTERS = ("router.weight", "mlp.gate.weight")


def main() -> int:
    """Write the folder and print its size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; must not exist")
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--layers", type=int, help="fewer layers than the model has")
    parser.add_argument("--random", action="store_true", help="random weights instead of holes")
    options = parser.parse_args()
    try:
        with new_folder(options.out) as folder:
            write_shape(folder, SHAPES[options.shape], layers=options.layers, random=options.random)
    except MintError as error:
        say(str(error))
        return 1
    files = [path.stat() for path in options.out.iterdir()]
    apparent, allocated = sum(file.st_size for file in files), sum(file.st_blocks * 512 for file in files)
    say(f"{len(files)} files, {apparent / 1e9:.1f} GB apparent, {allocated / 1e6:.1f} MB on the disk")
    return 0


def write_shape(
    folder: Path,
    shape: Shape,
    *,
    layers: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    random: bool = False,
    seed: int = 0,
) -> None:
    """Fill the empty `folder` with config, shards (sparse, or of `random` weights of `seed`) and their index."""
    config = shape.config
    if layers:
        config = {**config, **_fewer(config, layers)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shards: list[list[TensorSpec]] = [[]]
    free = shard_bytes
    for tensor in shape.specs(config):
        if shards[-1] and tensor.nbytes > free:
            shards.append([])
            free = shard_bytes
        shards[-1].append(tensor)
        free -= tensor.nbytes
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / name, tensors, dict(shape.tensors(config)), random=random, seed=seed)
        weight_map.update((tensor.name, name) for tensor in tensors)
    total = sum(tensor.nbytes for tensors in shards for tensor in tensors)
    listing = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_NAME).write_text(json.dumps(listing, indent=2) + "\n", encoding="utf-8")


def _fewer(config: dict[str, Any], layers: int) -> dict[str, Any]:
    if "text_config" in config:
        return {"text_config": {**config["text_config"], **_fewer(config["text_config"], layers)}}
    own = {"num_hidden_layers": layers}
    own |= {"num_nextn_predict_layers": 0} if "num_nextn_predict_layers" in config else {}
    if "first_k_dense_replace" in config:  # at least one mixture of experts
        own["first_k_dense_replace"] = min(config["first_k_dense_replace"], max(1, layers - 1))
    return own | ({"layer_types": config["layer_types"][:layers]} if "layer_types" in config else {})


def _write_shard(
    path: Path, tensors: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]], *, random: bool, seed: int
) -> None:
    """One file: its header, values for vectors, routers and scales, holes for the rest or `random` floats too.

    `shapes` has the shape of every weight, which some storages keep in a tensor.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.nbytes
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    generator = np.random.default_rng(len(header) + seed)
    with path.open("xb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
        for tensor in tensors:
            if random or len(tensor.shape) == 1 or tensor.dtype == "F32" or tensor.name.endswith(_ROUTERS):
                file.seek(8 + len(header) + entries[tensor.name]["data_offsets"][0])
                unpacked = shapes.get(tensor.name.removesuffix("_shape"))
                of_shape = unpacked and tensor.name.endswith("_shape")
                file.write(np.array(unpacked, np.int32).tobytes() if of_shape else _values(generator, tensor))


def _values(generator: np.random.Generator, tensor: TensorSpec) -> bytes:
    """Values as a trained model has them: norms and other vectors near one, matrices and scales near zero."""
    if tensor.name.endswith("_scales"):  # exponents
        return generator.integers(118, 124, tensor.shape, np.uint8).tobytes()
    if tensor.dtype in ("U8", "I32"):
        return generator.bytes(tensor.nbytes)
    values = generator.standard_normal(tensor.shape, np.float32) * np.float32(0.02)
    values = np.abs(values) if "scale" in tensor.name else values + np.float32(len(tensor.shape) == 1)
    if tensor.dtype == "F32":
        return values.tobytes()
    if tensor.dtype == "F8_E4M3":
        return (values * 100).astype(ml_dtypes.float8_e4m3fn).tobytes()
    return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()


if __name__ == "__main__":
    sys.exit(main())

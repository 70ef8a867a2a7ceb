"""Checkpoints whose logits transformers computed once, by rows that `tools/lab/record.py` writes.

Weights follow from the names of tensors, so a row has a config, names with shapes, and a few logits.
"""

# B sequences, L tokens, V vocabulary

import itertools
import json
import re
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Array = NDArray[np.float32]
Shape = tuple[int, ...]
Folded = dict[str, list[int]]  # shapes by names with sets of numbers: layers.{0,1}.mlp
TOKENS = np.random.default_rng(3).integers(3, 240, (1, 40))
_POSITIONS = (2, 21, 39)  # of the logits that are stored
_EVERY = 4  # of their vocabulary
_SETS = re.compile(r"\{([\d,]+)\}")


def drawn(name: str, shape: Shape) -> Array:
    """The weights (float32, of 8 bits) of a tensor: vectors near one, or zero for biases, matrices by their inputs."""
    noise = np.random.default_rng(crc32(name.encode())).standard_normal(shape, np.float32)
    if len(shape) < 2:
        middle = 1 if name.endswith("norm.weight") else 0
        values = middle + 0.2 * noise
    elif "embed" in name and len(shape) == 2:
        values = noise
    else:
        inputs = min(shape[-2:]) if "experts" in name else prod(shape[1:])
        values = 1.3 * noise / np.sqrt(inputs)
    bits = np.atleast_1d(values.astype(np.float32)).view(np.uint32) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).reshape(shape)


def sampled(logits: Array) -> Array:
    """Some of the logits (B, L, V)."""
    return logits[:, list(_POSITIONS), ::_EVERY]


def folded(shapes: Mapping[str, Shape]) -> Folded:
    """Shapes by names, those that differ in numbers alone under one name, as far as the numbers are independent."""
    groups: dict[tuple[str, Shape], list[tuple[str, ...]]] = {}
    for name, shape in shapes.items():
        numbers = tuple(re.findall(r"(?<=\.)\d+(?=\.)", name))
        groups.setdefault((re.sub(r"(?<=\.)\d+(?=\.)", "{}", name), tuple(shape)), []).append(numbers)
    result = {}
    for (pattern, shape), indices in groups.items():
        for sets in _products(indices):
            result[pattern.format(*(f"{{{','.join(numbers)}}}" for numbers in sets))] = list(shape)
    return result


def _products(indices: list[tuple[str, ...]]) -> Iterable[list[list[str]]]:
    """Sets of numbers whose products are the indices."""
    sets = [list(dict.fromkeys(numbers)) for numbers in zip(*indices, strict=True)]
    if set(itertools.product(*sets)) == set(indices):
        yield sets
        return
    for first in dict.fromkeys(index[0] for index in indices):
        rest = [index[1:] for index in indices if index[0] == first]
        yield from ([[first], *others] for others in (_products(rest) if rest[0] else [[]]))


def unfolded(tensors: Folded) -> dict[str, Shape]:
    """The shapes by names of `folded`."""
    shapes = {}
    for pattern, shape in tensors.items():
        sets = [numbers.split(",") for numbers in _SETS.findall(pattern)]
        for numbers in itertools.product(*sets):
            shapes[_SETS.sub("{}", pattern).format(*numbers)] = tuple(shape)
    return shapes


def write_recorded(row: Mapping[str, Any], folder: Path) -> Array:
    """Write the checkpoint of a row, and return its logits of transformers, at the places of `sampled`."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(row["config"]))
    weights = {name: drawn(name, shape) for name, shape in unfolded(row["tensors"]).items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return np.array(row["logits"], np.float32).reshape(len(TOKENS), len(_POSITIONS), -1)

"""Comparisons of an encoded checkpoint with the plain one of its decoded values."""

from pathlib import Path

import ml_dtypes
import mlx.core as mx
import numpy as np

from mint.model.checkpoint.reader import open_stored
from mint.model.module_tree import read_loaded_config
from mint.model.source import Source, open_source
from mint.model.storages import reference
from mint.model.storages.decoding import find_stored
from tests.worlds.encodings import read_tensors


def check_same(folder: Path, twin: Path) -> Source:
    """Both open as the same parameters, bit by bit, and every tensor of the encoded one is accounted for."""
    source, expected = open_source(folder, requantize=True), open_source(twin).arrays()
    arrays = source.arrays()
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        assert array.dtype == expected[name].dtype, name
        assert mx.array_equal(array, expected[name]), name
    used = {name for unit in source.units for name in unit.sources}
    used |= {name for parameter in source.parameters for name in parameter.sources}
    assert used | set(source.dropped) == source.tensors().keys()
    assert not any(name.endswith(("scale_inv", "_scales", "qzeros")) for name in source.dropped if "61" not in name)
    return source


def check_reference(folder: Path, twin: Path) -> None:
    """The decoding in numpy gives the same values."""
    source = open_source(folder, requantize=True)
    stored = find_stored(folder, read_loaded_config(folder), source.shards)
    files, plain = open_stored(folder), read_tensors(twin / "model.safetensors")
    assert stored.encoded
    for name, encoded in stored.encoded.items():
        raw = {role: files.raw(part.name) for role, part in encoded.parts.items()}
        values = reference.decode(encoded, raw)
        assert values.dtype == np.float32
        expected = plain[name][1]
        assert values.shape == expected.shape
        assert np.array_equal(values.astype(ml_dtypes.bfloat16), expected), name

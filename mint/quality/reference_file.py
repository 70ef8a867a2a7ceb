"""The file of a reference: the sequences, and what the original model says about every token of them.

One pass of the original model serves any number of candidates, and no two models are ever in memory together.
It is a safetensors file, written sequence by sequence:

    tokens             (S, L)        I32   the sequences
    top                (S, L-1)      I32   the likeliest next token
    nll                (S, L-1)      F32   negative log-likelihood of the next token, nats
    noise              (N, L-1)      F32   KL(float32 run || bf16 run) of the reference itself on the first N sequences
    log_probabilities  (S, L-1, V)   F16   of every next token

Half precision is enough for the log-probabilities: they are normalized again when read, so that what is left is of
second order. See `tests/mint/quality/test_reference.py` for the law, and README for the figure on a real model.
The metadata holds the model's identity, its tokenizer's vocabulary, seed, versions, and a digest of everything.
"""

# S sequences, N of them measured for noise, L tokens of each, V vocabulary, B sequences of a block

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import prod
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from mint.core.errors import MintError
from mint.core.files import chunks, sha256_of
from mint.formats.layout import file_head
from mint.quality.divergence import Logits, Tokens

KIND = "mint reference"
SCHEMA = 1
_NO_DIGEST = "0" * 64
_SMALL = ("tokens", "top", "nll", "noise")
_DTYPES = {"tokens": "I32", "top": "I32", "nll": "F32", "noise": "F32", "log_probabilities": "F16"}
_NUMPY: dict[str, np.dtype[Any]] = {"I32": np.dtype(np.int32), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16)}

Small = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of a reference: its model, its sequences, and the versions that computed it."""

    model: str  # its folder, for people
    identity: str  # of its weights and config
    tokenizer: str  # digest of the vocabulary, empty without a tokenizer
    sequences: str  # the text files, or that the model wrote them
    seed: int
    device: str
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Reference:
    """An opened reference file; log-probabilities are read block by block."""

    path: Path
    origin: Origin
    tokens: Tokens  # (S, L)
    top: Tokens  # (S, L-1)
    nll: npt.NDArray[np.float32]  # (S, L-1)
    noise: npt.NDArray[np.float32]  # (N, L-1) the noise floor, nats
    vocabulary: int

    def log_probabilities(self, rows: slice) -> Logits:
        """(B, L-1, V) of some sequences."""
        with safe_open(self.path, "numpy") as file:
            block: Logits = file.get_slice("log_probabilities")[rows]
        return block


def partial_path(path: Path) -> Path:
    """The path of the unfinished reference file for `path`."""
    return path.with_name(f"{path.name}.partial")


class Writing:
    """A reference file in the making, at PATH.partial until it is whole."""

    def __init__(self, path: Path, origin: Origin, tokens: Tokens, vocabulary: int, *, noisy: int) -> None:
        sequences, length = tokens.shape
        predicted = dict.fromkeys(_SMALL, (sequences, length - 1))
        self._shapes = predicted | {"tokens": (sequences, length), "noise": (noisy, length - 1)}
        self._origin = origin
        self._tokens = tokens
        self._path, self._partial = path, partial_path(path)
        self._large: tuple[int, ...] = (sequences, length - 1, vocabulary)
        self._data = hashlib.sha256()
        self._written = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = self._partial.open("w+b")
        self._start = len(self._header(_NO_DIGEST)) + sum(4 * prod(self._shapes[name]) for name in _SMALL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def append(self, log_probabilities: Logits) -> None:
        """Write the log-probabilities (B, L-1, V) of the next sequences."""
        stored = np.ascontiguousarray(log_probabilities.astype(np.float16))
        self._file.seek(self._start + self._written)
        self._file.write(stored.data)
        self._data.update(stored.data)
        self._written += stored.nbytes

    def log_probabilities(self, rows: slice) -> Logits:
        """(B, L-1, V) of sequences that were written."""
        _, positions, vocabulary = self._large
        size = positions * vocabulary
        self._file.seek(self._start + rows.start * size * 2)
        block = np.fromfile(self._file, np.float16, (rows.stop - rows.start) * size)
        return block.reshape(-1, positions, vocabulary)

    def finish(self, top: Tokens, nll: Logits, noise: Logits) -> None:
        """Write the small tensors and the digest, and give the file its name."""
        given = {"tokens": self._tokens, "top": top, "nll": nll, "noise": noise}
        small = {name: np.ascontiguousarray(given[name], _NUMPY[_DTYPES[name]]) for name in _SMALL}
        assert self._written == 2 * prod(self._large)
        self._file.seek(0)
        self._file.write(self._header(_digest(self._origin, small, self._large, self._data.hexdigest())))
        for name in _SMALL:
            self._file.write(small[name].data)
        self._file.close()
        self._partial.replace(self._path)

    def _header(self, digest: str) -> bytes:
        """The safetensors header: as long for one digest as for another."""
        entries: dict[str, Any] = {
            "__metadata__": {
                "kind": KIND, "schema": str(SCHEMA), "origin": json.dumps(asdict(self._origin)), "digest": digest
            }
        }  # fmt: skip
        offset = 0
        for name, shape in (self._shapes | {"log_probabilities": self._large}).items():
            nbytes = prod(shape) * _NUMPY[_DTYPES[name]].itemsize
            entries[name] = {"dtype": _DTYPES[name], "shape": shape, "data_offsets": (offset, offset + nbytes)}
            offset += nbytes
        return file_head(json.dumps(entries))


def read_reference(path: Path) -> Reference:
    """The reference in the file at `path`, its digest checked; `MintError` when it is foreign or damaged."""
    again = "make it again with --save-reference"
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("kind") != KIND:
                raise MintError(
                    f"{path}: a safetensors file, but no reference; needed: one that `mint evaluate "
                    "--save-reference` wrote, or a model folder"
                )
            if metadata["schema"] != str(SCHEMA):
                raise MintError(f"{path}: a reference of schema {metadata['schema']}, needed {SCHEMA}; {again}")
            small = {name: file.get_tensor(name) for name in _SMALL}
            shape = file.get_slice("log_probabilities").get_shape()
        record, needed = json.loads(metadata["origin"]), metadata["digest"]
        origin = Origin(**{field.name: record[field.name] for field in fields(Origin)})
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise MintError(f"{path}: not a whole reference file ({error}); {again}") from error
    digest = _digest(origin, small, tuple(shape), _digest_of_end(path, 2 * prod(shape)))
    if digest != needed:
        raise MintError(f"{path}: damaged: its content has digest {digest[:16]}, needed {needed[:16]}; {again}")
    return Reference(path, origin, **small, vocabulary=shape[-1])


def _digest(origin: Origin, small: Small, shape: tuple[int, ...], data: str) -> str:
    """SHA-256 of everything in the file; `shape` and `data` are the log-probabilities' shape and SHA-256."""
    digest = hashlib.sha256(json.dumps(asdict(origin), sort_keys=True).encode())
    for name in _SMALL:
        array = np.ascontiguousarray(small[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    digest.update(f"{shape} {data}".encode())
    return digest.hexdigest()


def _digest_of_end(path: Path, nbytes: int) -> str:
    """SHA-256 of the last `nbytes` bytes of a file."""
    with path.open("rb") as file:
        file.seek(-nbytes, 2)
        return sha256_of(chunks(file))

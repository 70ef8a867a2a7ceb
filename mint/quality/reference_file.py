"""The file of a reference: the sequences, and the original model's predictions of every token of them.

One pass of the original model serves any number of candidates, and no two models are ever in memory together.
It is a safetensors file, written sequence by sequence:

    tokens             (S, L)        I32   the sequences
    top                (S, L-1)      I32   the likeliest next token
    nll                (S, L-1)      F32   negative log-likelihood of the next token, nats
    noise              (N, L-1)      F32   KL(float32 run || bf16 run) of the reference itself on the first N sequences
    log_probabilities  (S, L-1, V)   F16   of every next token

Half precision is enough for the log-probabilities: they are normalized again when read, so that the rest is of second
order. See `tests/mint/quality/test_divergence.py` for the law, and docs/closeness.md for the figure on a real model.
The metadata holds the `Origin`, and a digest of everything.
"""

# S sequences, N of them measured for noise, L tokens of each, V vocabulary, B sequences of a block

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from mint.core.errors import MintError
from mint.core.files import naming, partial_path
from mint.core.records import MALFORMED
from mint.formats.layout import file_head
from mint.quality.divergence import Logits, Tokens

KIND = "mint reference"
SCHEMA = 1
_NO_DIGEST = "0" * 64
_SMALL = ("tokens", "top", "nll", "noise")
_DTYPES = {"int32": "I32", "float32": "F32"}

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
    """A reference file; its log-probabilities are read block by block."""

    path: Path
    origin: Origin
    tokens: Tokens  # (S, L)
    top: Tokens  # (S, L-1)
    nll: npt.NDArray[np.float32]  # (S, L-1)
    noise: npt.NDArray[np.float32]  # (N, L-1) the noise floor, nats
    vocabulary: int
    start: int  # of the log-probabilities in the file

    def log_probabilities(self, rows: slice) -> Logits:
        """(B, L-1, V) of some sequences."""
        positions = self.nll.shape[1]
        size = positions * self.vocabulary
        offset = self.start + 2 * size * rows.start
        block = np.fromfile(self.path, np.float16, size * (rows.stop - rows.start), offset=offset)
        return block.reshape(-1, positions, self.vocabulary)


@contextmanager
def new_reference(
    path: Path, origin: Origin, tokens: Tokens, vocabulary: int, *, noisy: int
) -> Iterator[tuple[Reference, Callable[[Logits], None]]]:
    """A reference with arrays to fill, and what appends the log-probabilities (B, L-1, V) of the next sequences.

    The file is at PATH.partial until the block ends; an error in the block removes it.
    """
    shape = (len(tokens), tokens.shape[1] - 1, vocabulary)
    top, nll = np.zeros(shape[:2], np.int32), np.zeros(shape[:2], np.float32)
    noise = np.zeros((noisy, shape[1]), np.float32)
    small = {"tokens": np.ascontiguousarray(tokens, np.int32), "top": top, "nll": nll, "noise": noise}
    head, data = _head(origin, small, shape, _NO_DIGEST), hashlib.sha256()
    reference = Reference(partial_path(path), origin, **small, vocabulary=vocabulary, start=len(head))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with naming(path), reference.path.open("wb") as file:
            file.write(head)

            def append(log_probabilities: Logits) -> None:
                block = np.ascontiguousarray(log_probabilities, np.float16).data
                file.write(block)
                file.flush()  # `reference` reads it
                data.update(block)

            yield reference, append
            assert file.tell() == len(head) + 2 * prod(shape)
            file.seek(0)
            file.write(_head(origin, small, shape, _digest(origin, small, shape, data.hexdigest())))
            file.flush()
            os.fsync(file.fileno())
        reference.path.replace(path)
    finally:
        reference.path.unlink(missing_ok=True)


def _head(origin: Origin, small: Small, shape: tuple[int, ...], digest: str) -> bytes:
    """Everything before the log-probabilities of this `shape`: as long for one digest as for another."""
    metadata = {"kind": KIND, "schema": str(SCHEMA), "origin": json.dumps(asdict(origin)), "digest": digest}
    entries: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    tensors = [(name, _DTYPES[str(array.dtype)], array.shape, array.nbytes) for name, array in small.items()]
    for name, dtype, sizes, nbytes in (*tensors, ("log_probabilities", "F16", shape, 2 * prod(shape))):
        entries[name] = {"dtype": dtype, "shape": sizes, "data_offsets": (offset, offset + nbytes)}
        offset += nbytes
    return file_head(json.dumps(entries)) + b"".join(array.tobytes() for array in small.values())


def read_reference(path: Path) -> Reference:
    """The reference in the file at `path`, its digest checked; `MintError` when it is foreign or damaged."""
    again = "make it again with --save-reference"
    path.open("rb").close()  # raises an error that names the file: those of safetensors do not
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("kind") != KIND:
                needed = "needed: a file of `mint evaluate --save-reference`, or a model folder"
                raise MintError(f"{path}: a safetensors file, but no reference; {needed}")
            if metadata["schema"] != str(SCHEMA):
                raise MintError(f"{path}: a reference of schema {metadata['schema']}, needed {SCHEMA}; {again}")
            small = {name: file.get_tensor(name) for name in _SMALL}
            shape = file.get_slice("log_probabilities").get_shape()
        record, sealed = json.loads(metadata["origin"]), metadata["digest"]
        origin = Origin(**{field.name: record[field.name] for field in fields(Origin)})
    except (SafetensorError, *MALFORMED) as error:
        raise MintError(f"{path}: not a whole reference file ({error}); {again}") from error
    start = path.stat().st_size - 2 * prod(shape)
    with naming(path), path.open("rb") as rest:
        rest.seek(start)
        digest = _digest(origin, small, tuple(shape), hashlib.file_digest(rest, "sha256").hexdigest())
    if digest != sealed:
        raise MintError(f"{path}: damaged: its content has digest {digest[:16]}, needed {sealed[:16]}; {again}")
    return Reference(path, origin, **small, vocabulary=shape[-1], start=start)


def _digest(origin: Origin, small: Small, shape: tuple[int, ...], data: str) -> str:
    """SHA-256 of everything in the file; `shape` and `data` are the log-probabilities' shape and SHA-256."""
    digest = hashlib.sha256(json.dumps(asdict(origin), sort_keys=True).encode())
    for name in _SMALL:
        array = np.ascontiguousarray(small[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    digest.update(f"{shape} {data}".encode())
    return digest.hexdigest()

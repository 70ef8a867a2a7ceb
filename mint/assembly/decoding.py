"""Checks that a source means what was measured: some of its weights are decoded once more, in numpy.

The tensors that feed a weight are read and decoded without MLX (`storages/reference.py`), all other tensors are lazy
zeros, and the model's own `sanitize` makes the weight of them. The weight must be the measured one, up to the rounding
of bf16, and a weight that was stored with little error must be close to it. A wrong decoding shows as a difference of
order one. The smallest unit of each role and each kind of stored tensors is looked at, and one more if it is small.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod, sqrt

import mlx.core as mx
import numpy as np

from mint.analysis.unit_jobs import check_measured
from mint.assembly.distances import BLOCK, Rows, distance_of
from mint.core.errors import MintError
from mint.formats.units import Unit
from mint.kernels.storage import from_raw, raw
from mint.model.checkpoint.reader import StoredModel
from mint.model.checkpoint.shards import SourceTensor
from mint.model.module_tree import DTYPES
from mint.model.source import Source
from mint.model.storages import reference
from mint.model.storages.decoding import Stored
from mint.model.storages.storage import Encoded
from mint.plan.plan import Choice, Plan
from mint.run.executor import in_process

TOLERANCE = 2.0**-8  # relative, in the L2 norm: the spacing of bf16
FACTOR = 5.0  # times the planned error: slices differ, and compensation moves errors to where inputs are small
GENEROUS = 0.01  # squared relative error of a format whose stored weight is compared
SMALL_BYTES = 64 << 20  # two units of a kind are looked at if they take no more
LARGE = 1 << 28  # weights that numpy decodes at once, at most
_MLX_DTYPES = {name: dtype for dtype, name in DTYPES.items()}

Leaf = SourceTensor | Encoded  # a plain tensor, or an encoded weight


@dataclass(frozen=True, slots=True)
class Sample:
    """A unit, and those of its tensors that are decoded: for a stack of many tensors only the first."""

    unit: Unit
    leaves: tuple[Leaf, ...]
    is_whole: bool


def check_decoding(plan: Plan, source: Source, written: StoredModel) -> str:
    """Compare samples of the measured and of the written weights with their decoding in numpy; the result in words.

    Raises `MintError` for a unit that differs.
    """
    stored = source.opened.tree().stored
    choices = {choice.path: choice for choice in plan.choices}
    units = [unit for unit in source.units if choices[unit.path].is_finite]
    files = source.opened.stored
    samples = {sample.unit.path: sample for sample in _samples(units, files.tensors, stored)}

    def compare(unit: Unit, weight: mx.array) -> float:
        check_measured(unit, weight, plan.checksums)
        sample, choice = samples[unit.path], choices[unit.path]
        if rows := _as_read(sample, weight, files):
            _check_stored(sample, rows, choice, written)
            return 0.0
        expected = _decoded(sample, source, stored).__getitem__
        difference = _check_weight(sample, weight, expected)
        _check_stored(sample, expected, choice, written)
        return difference

    chosen = [sample.unit for sample in samples.values()]
    worst = max((difference for _, difference in in_process(source, compare, chosen)), default=0.0)
    return f"{len(samples)} units decode to the measured weights in numpy too (largest relative difference {worst:.1e})"


def _samples(units: Sequence[Unit], tensors: Mapping[str, SourceTensor], stored: Stored) -> Iterator[Sample]:
    parts = stored.parts
    kinds: dict[tuple[object, ...], list[Sample]] = defaultdict(list)
    for unit in units:
        leaves = list({leaf.name: leaf for name in unit.sources if (leaf := parts.get(name) or tensors[name])}.values())
        sample = _sample(unit, leaves)
        if sample:
            kinds[unit.role, *sorted({_kind(leaf) for leaf in leaves})].append(sample)
    for samples in kinds.values():
        samples.sort(key=lambda sample: sample.unit.nbytes)
        yield samples[0]
        yield from (sample for sample in samples[1:][-1:] if sample.unit.nbytes <= SMALL_BYTES)


def _sample(unit: Unit, leaves: Sequence[Leaf]) -> Sample | None:
    """A sample of the first leaves that are not too large together; None if the first one is."""
    count, size = 0, 0
    for leaf in leaves:
        size += prod(leaf.shape)
        if size > LARGE:
            break
        count += 1
    return Sample(unit, tuple(leaves[:count]), count == len(leaves)) if count else None


def _kind(leaf: Leaf) -> str:
    return leaf.storage if isinstance(leaf, Encoded) else leaf.dtype


def _as_read(sample: Sample, weight: mx.array, files: StoredModel) -> Rows | None:
    """The rows of the one plain tensor that is the weight bit by bit, read without MLX; None for other weights."""
    leaf, unit = sample.leaves[0], sample.unit
    if isinstance(leaf, Encoded) or len(unit.sources) > 1 or (leaf.shape, leaf.dtype) != (unit.shape, unit.dtype):
        return None
    bits = raw(weight)
    equal = (np.array_equal(bits[part], files.raw(leaf.name, part)) for part in unit.parts(BLOCK))
    return partial(files.array, leaf.name) if all(equal) else None


def _decoded(sample: Sample, source: Source, stored: Stored) -> mx.array:
    """The weight of a unit as `sanitize` makes it of its decoded tensors, zeros where a tensor is not decoded."""
    files = source.opened.stored
    plain = {name: tensor for name, tensor in files.tensors.items() if name not in stored.parts.keys() | stored.runtime}
    dtype = source.opened.decoded_dtype
    weights = {name: mx.zeros(tensor.shape, _MLX_DTYPES[tensor.dtype]) for name, tensor in plain.items()}
    weights |= {name: mx.zeros(encoded.shape, dtype) for name, encoded in stored.encoded.items()}
    for leaf in sample.leaves:
        if isinstance(leaf, Encoded):
            parts = {role: files.raw(part.name) for role, part in leaf.parts.items()}
            weights[leaf.name] = mx.array(reference.decode(leaf, parts)).astype(dtype)
        else:
            weights[leaf.name] = from_raw(files.raw(leaf.name), leaf.dtype)
    array = source.opened.parameters_of(weights)[f"{sample.unit.path}.weight"]
    mx.eval(array)
    return array


def _check_weight(sample: Sample, weight: mx.array, expected: Rows) -> float:
    """The relative difference of the measured weight; `MintError` if it is too large."""
    difference = _difference(sample, weight.__getitem__, expected)
    if not difference <= TOLERANCE:
        raise MintError(
            f"unit {sample.unit.path}: the measured weight differs from the one that numpy decodes by {difference:.2g} "
            f"relative, allowed {TOLERANCE:.2g}; its tensors are decoded wrongly"
        )
    return difference


def _check_stored(sample: Sample, expected: Rows, choice: Choice, written: StoredModel) -> None:
    """Raise `MintError` if the stored weight, planned with little error, differs too much."""
    if choice.error > GENEROUS:
        return
    path, allowed = sample.unit.path, TOLERANCE + FACTOR * sqrt(choice.error)
    difference = _difference(sample, partial(written.dequantized, path, choice.format), expected)
    if not difference <= allowed:
        raise MintError(
            f"unit {path}: the stored weight differs from the one that numpy decodes by {difference:.2g} "
            f"relative, allowed {allowed:.2g}"
        )


def _difference(sample: Sample, rows: Rows, expected: Rows) -> float:
    return distance_of(rows, expected, sample.unit.parts(BLOCK), skips_zeros=not sample.is_whole).relative_norm

"""Checks that a source means what was measured: some of its weights are decoded once more, in numpy.

The tensors that feed a weight are read and decoded without MLX (`storages/reference.py`), all other tensors are lazy
zeros, and the model's own `sanitize` makes the weight of them. The weight must be the measured one, up to the rounding
of bf16, and a weight that was stored with little error must be close to it. A wrong decoding shows as a difference of
order one. The smallest unit of each role and each kind of stored tensors is looked at, and one more if it is small. Of
a stack that comes in blocks the first slices are looked at, one by one.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod, sqrt

import mlx.core as mx
import numpy as np

from mint.analysis.unit_jobs import Checksummed, check_analyzed, checksum_of
from mint.assembly.distances import BLOCK, Distance, Rows, distance_from_block, distance_of
from mint.core.errors import MintError
from mint.formats.rounding import ROUNDINGS, learns
from mint.formats.units import Unit
from mint.kernels.missing_outputs import MOST_CHANGE
from mint.kernels.storage import from_raw, raw
from mint.model.checkpoint.reader import StoredModel
from mint.model.checkpoint.shards import SourceTensor
from mint.model.source import Source
from mint.model.storages import reference
from mint.model.storages.decoding import Stored, decoded_zeros
from mint.model.storages.storage import Encoded, Leaf
from mint.plan.plan import Choice, Plan
from mint.run.executor import in_process
from mint.run.job import BlockJob, Blocks

TOLERANCE = 2.0**-8  # relative, in the L2 norm: the spacing of bf16
FACTOR = 5.0  # times the planned error: slices differ, and compensation moves errors to where inputs are small
GENEROUS = 0.01  # squared relative error of a format whose stored weight is compared
SMALL_BYTES = 64 << 20  # two units of a kind are looked at if they take no more
LARGE = 1 << 28  # weights that numpy decodes at once, at most


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
    samples = {sample.unit.path: sample for sample in _samples(units, source.opened.stored.tensors, stored)}
    learned = sqrt(MOST_CHANGE) if learns(ROUNDINGS[plan.rounding], plan.bits_per_weight) else 0.0
    comparison = _Comparison(source, stored, samples, choices, plan.checksums, written, learned)
    chosen = [sample.unit for sample in samples.values()]
    worst = max((difference for _, difference in in_process(source, comparison, chosen)), default=0.0)
    return f"{len(samples)} units decode to the measured weights in numpy too (largest relative difference {worst:.1e})"


@dataclass(frozen=True, slots=True)
class _Comparison(BlockJob[float]):
    """The relative difference of a measured weight from its decoding in numpy; `MintError` where it is too large."""

    source: Source
    stored: Stored
    samples: Mapping[str, Sample]
    choices: Mapping[str, Choice]
    checksums: Mapping[str, str]
    written: StoredModel
    learned: float  # relative change of a weight, beside that of its rounding

    def __call__(self, unit: Unit, weight: mx.array) -> float:
        check_analyzed(f"unit {unit.path}: its weight is", checksum_of(weight), self.checksums[unit.path])
        sample, files = self.samples[unit.path], self.source.opened.stored
        as_read = _as_read(sample, weight, files)
        expected = as_read or _decoded(sample, self.source, self.stored).__getitem__

        def difference_of(rows: Rows) -> float:
            return distance_of(rows, expected, unit.parts(BLOCK), skips_zeros=not sample.is_whole).relative_norm

        difference = 0.0 if as_read else difference_of(weight.__getitem__)
        return self._checked(unit, difference, lambda: difference_of(self._written(unit)))

    def of_blocks(self, unit: Unit, blocks: Blocks) -> float:
        """Of a large stack the first slices are decoded, which need no other tensors."""
        leaves, checked = self.source.stacks[unit.path], Checksummed(unit, blocks)
        if len(leaves) == 1:
            return self(unit, mx.concatenate(list(blocks())).reshape(unit.shape))
        count = max(1, LARGE // prod(leaves[0].shape))
        difference = stored = Distance(0.0, 0.0)
        for slices, block in checked():
            if slices.stop <= count:
                difference += distance_from_block(self._decoded_slices(leaves), slices, block)
                stored += distance_from_block(self._written(unit), slices, block)
        checked.check(self.checksums)
        return self._checked(unit, difference.relative_norm, lambda: stored.relative_norm)

    def _decoded_slices(self, leaves: Sequence[Leaf]) -> Rows:
        dtype = self.source.opened.decoded_dtype
        return lambda part: mx.stack([_leaf(leaf, self.source.opened.stored, dtype) for leaf in leaves[part]])

    def _written(self, unit: Unit) -> Rows:
        return partial(self.written.dequantized, unit.path, self.choices[unit.path].format)

    def _checked(self, unit: Unit, difference: float, stored_difference: Callable[[], float]) -> float:
        """The difference; `MintError` if it, or that of the stored weight, is too large."""
        choice = self.choices[unit.path]
        if not difference <= TOLERANCE:
            raise MintError(
                f"unit {unit.path}: the measured weight differs from the one that numpy decodes by {difference:.2g} "
                f"relative, allowed {TOLERANCE:.2g}; its tensors are decoded wrongly"
            )
        allowed = TOLERANCE + FACTOR * sqrt(choice.error) + self.learned
        if choice.error <= GENEROUS and not (stored := stored_difference()) <= allowed:
            raise MintError(
                f"unit {unit.path}: the stored weight differs from the one that numpy decodes by {stored:.2g} "
                f"relative, allowed {allowed:.2g}"
            )
        return difference


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
    files, dtype = source.opened.stored, source.opened.decoded_dtype
    weights = decoded_zeros(stored, files.tensors, dtype)
    weights |= {leaf.name: _leaf(leaf, files, dtype) for leaf in sample.leaves}
    array = source.opened.parameters_of(weights)[f"{sample.unit.path}.weight"]
    mx.eval(array)
    return array


def _leaf(leaf: Leaf, files: StoredModel, dtype: mx.Dtype) -> mx.array:
    """A tensor as it lies on the disk, or an encoded weight as numpy decodes it."""
    if not isinstance(leaf, Encoded):
        return from_raw(files.raw(leaf.name), leaf.dtype)
    parts = {role: files.raw(part.name) for role, part in leaf.parts.items()}
    return mx.array(reference.decode(leaf, parts)).astype(dtype)

"""Opens a model with packed weights, for probes of a model that does not fit in memory at full precision.

Every matrix is stored as `mx.quantize` stores it and unpacked to float32 while it is used, one at a time; packing
streams it from the source unit by unit, a large stack of experts in blocks. So memory stays near the packed size plus
one matrix or block, and the model computes exactly the float32 function of its packed weights. A module with a `weight`
uses that one instead.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from mint.analysis.probes.packed_weight import PackedWeight, unpacked_size
from mint.analysis.probes.probe_file import FULL
from mint.core.errors import MintError
from mint.core.log import log
from mint.core.sizes import enough_size, format_size
from mint.formats.format import Format, admissible, parse_format
from mint.formats.units import Unit
from mint.kernels.backend import backend
from mint.kernels.oracle import pack
from mint.model.hooks import hook
from mint.model.roles import TOWER
from mint.model.source import Source
from mint.quality.forward import open_wide, open_without
from mint.run.executor import in_process, memory_for_models, small_cache
from mint.run.job import BlockJob, Blocks
from mint.run.stacks import comes_in_blocks, held_bytes

AUTO = "auto"
BASES = {  # by falling memory; each unit gets the first format that it admits, or stays as it is
    "8": ("8/64", "8/32", "8/128"),
    "6": ("6/64", "6/32", "6/128"),
    "4": ("4/64", "4/32", "4/128"),
}
_LOGITS = 4  # the expected ones, their probabilities, those of a probe, and a temporary


def base_format(unit: Unit, base: str) -> Format | None:
    """The format of a unit in a base; None if it stays as it is."""
    if base == FULL or unit.kept or unit.role == TOWER:
        return None
    return next(iter(admissible(unit.shape, unit.dtype, map(parse_format, BASES[base]))), None)


def needed_bytes(source: Source, base: str, tokens: int) -> int:
    """Approximate memory of probes around a base: the model, the activations of `tokens`, and the probed unit."""
    units = [unit for unit in source.units if unit.role != TOWER]
    largest = max((unpacked_size(source, unit) * (4 + 4) + _weight_bytes(source, unit) for unit in units), default=0)
    rows, width = max((unit.shape[-2:] for unit in units if unit.role in ("head", "embedding")), default=(0, 0))
    return model_bytes(source, base) + largest + 4 * tokens * (_LOGITS * rows + source.layers * width)


def _weight_bytes(source: Source, unit: Unit) -> int:
    return held_bytes(source, unit) if comes_in_blocks(source, unit) else unit.nbytes


def model_bytes(source: Source, base: str) -> int:
    """Memory of a model that computes in float32 in a base."""
    plain = 0 if backend().runs_stored_weights else 4  # bytes of a weight that is not packed; 0: as it is stored
    nbytes = 0
    units = [unit for unit in source.units if unit.role != TOWER]
    for unit in units:
        format = base_format(unit, base)
        nbytes += format.nbytes(unit.shape, unit.dtype) if format else (unit.size * plain or unit.nbytes)
    return nbytes + sum(4 * prod(parameter.shape) for parameter in source.parameters)


def fitting_base(source: Source, base: str, tokens: int, memory: int | None = None) -> str:
    """The base itself; for `auto` full precision or the most bits that fit the memory, empty if none does."""
    if base != AUTO:
        return base
    limit = memory_for_models() if memory is None else memory
    return next((base for base in (FULL, *BASES) if needed_bytes(source, base, tokens) <= limit), "")


def chosen_base(source: Source, base: str, tokens: int, memory: int | None = None) -> str:
    """The base itself; for `auto` full precision if it fits the memory, else the most bits that fit.

    `memory` is that of this machine by default. Raises `MintError` if no base fits.
    """
    memory = memory_for_models() if memory is None else memory
    fitting = fitting_base(source, base, tokens, memory)
    if not fitting:
        smallest = [*BASES][-1]
        needed = enough_size(needed_bytes(source, smallest, tokens))
        raise MintError(
            f"probing takes about {needed} around {smallest} bits, this machine has {format_size(memory)} for it; "
            f"needed a machine with more, fewer --sequences or a smaller --length. --base {smallest} tries all the same"
        )
    if base == AUTO and fitting != FULL:
        reason = f"probing at full precision takes about {format_size(needed_bytes(source, FULL, tokens))}"
        numbers = {"needed_bytes": needed_bytes(source, fitting, tokens), "memory_bytes": memory}
        log.warning("base.chosen", base=f"{fitting} bits", reason=reason, **numbers)
    return fitting


def open_base(source: Source, base: str) -> Module:
    """The model of `source` computing in float32, with its units in the formats of a base."""
    if base == FULL:
        return open_wide(source.folder, source.loader)
    formats = {unit.path: format for unit in source.units if (format := base_format(unit, base))}
    model = open_without(source.folder, formats, source.loader)
    modules = dict(model.named_modules())

    with small_cache():
        for unit, packed in in_process(source, _Pack(formats), [unit for unit in source.units if unit.path in formats]):
            hook(modules[unit.path], partial(_call_without_weight, packed))
    return model


@dataclass(frozen=True, slots=True)
class _Pack(BlockJob[PackedWeight]):
    """The unit in its format of a base, as `mx.quantize` packs it."""

    formats: Mapping[str, Format]

    def of_blocks(self, unit: Unit, blocks: Blocks) -> PackedWeight:
        format = self.formats[unit.path]
        packed = []
        for block in blocks():
            packed.append(pack(block.reshape(-1, *unit.shape[1:]), format))
            mx.eval(packed[-1])
        return PackedWeight(tuple(packed), partial(backend().unpack, format=format))


def _call_without_weight(
    packed: PackedWeight, method: Callable[..., mx.array], module: Module, *arguments: Any, **options: Any
) -> mx.array:
    call = method if "weight" in module else partial(packed.call, method)
    return call(module, *arguments, **options)

"""Opens a model with packed weights, for probing one that does not fit in memory at full precision.

Every matrix is stored as `mx.quantize` stores it and unpacked to float32 while it is used, one at a time; packing
streams it from the source unit by unit. So memory stays near the packed size plus one unit, and what the model computes
is exactly the float32 function of its packed weights. A module that is given a `weight` uses that one instead.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.nn.layers.embedding import Embedding

from mint.analysis.probes.probe_file import FULL
from mint.core.errors import MintError
from mint.core.log import log
from mint.core.sizes import format_size
from mint.formats.format import Format, admissible, parse_format
from mint.formats.units import Unit
from mint.kernels.backend import backend
from mint.kernels.oracle import dequantize
from mint.model.hooks import hook
from mint.model.source import Source
from mint.quality.forward import open_wide, open_without
from mint.run.executor import in_process, small_cache

AUTO = "auto"
BASES = {  # by falling memory; each unit gets the first format that it admits, or stays as it is
    "8": ("8/64", "8/32", "8/128"),
    "6": ("6/64", "6/32", "6/128"),
    "4": ("4/64", "4/32", "4/128"),
}
_SHARE = 0.8  # of the memory; the rest is for everything else
_LOGITS = 4  # expected, their probabilities, found, and what is on its way


def check_base(name: str) -> None:
    """Raise `MintError` for a base that does not exist."""
    if name not in (AUTO, FULL, *BASES):
        raise MintError(f"{name!r} is not a base; needed one of: {', '.join((AUTO, FULL, *BASES))}")


def describe_base(name: str) -> str:
    """A base in words."""
    return "around full precision" if name == FULL else f"around {name} bits"


def base_format(unit: Unit, base: str) -> Format | None:
    """The format of a unit in a base; None where it stays as it is."""
    if base == FULL or unit.keep_reason:
        return None
    return next(iter(admissible(unit.shape, unit.dtype, map(parse_format, BASES[base]))), None)


def needed_bytes(source: Source, base: str, tokens: int) -> int:
    """About what probing takes around a base: the model, what `tokens` pass through it, and the unit at hand."""
    plain = 0 if backend().runs_stored_weights else 4  # bytes of a weight that is not packed; 0: as it is stored
    nbytes = 0
    for unit in source.units:
        format = base_format(unit, base)
        nbytes += format.nbytes(unit.shape, unit.dtype) if format else (unit.size * plain or unit.nbytes)
    nbytes += sum(4 * prod(parameter.shape) for parameter in source.parameters)
    largest = max((unit.size * (4 + 4) + unit.nbytes for unit in source.units), default=0)
    rows, width = max((unit.shape[-2:] for unit in source.units if unit.role in ("head", "embedding")), default=(0, 0))
    return nbytes + largest + 4 * tokens * (_LOGITS * rows + source.layers * width)


def memory_for_models() -> int:
    """Bytes that this machine has for a model: its GPU's working set, else its memory, less a reserve."""
    return int(_SHARE * backend().memory_bytes())


def choose_base(source: Source, tokens: int, memory: int) -> str:
    """Full precision where it fits the memory, else the base of the most bits that does; `MintError` if none does."""
    needs = {base: needed_bytes(source, base, tokens) for base in (FULL, *BASES)}
    for base, needed in needs.items():
        if needed <= memory:
            if base != FULL:
                log.warning(
                    "base.chosen",
                    base=f"{base} bits",
                    reason=f"probing at full precision takes about {format_size(needs[FULL])}",
                    needed_bytes=needed,
                    memory_bytes=memory,
                )
            return base
    last = list(BASES)[-1]
    raise MintError(
        f"probing takes about {format_size(needs[last])} around {last} bits, this machine has {format_size(memory)} "
        f"for it; needed a machine with more, fewer --sequences or a smaller --length. --base {last} tries all the same"
    )


def chosen_base(source: Source, base: str, tokens: int) -> str:
    """The base that was asked for; for `auto` the one that fits this machine."""
    return choose_base(source, tokens, memory_for_models()) if base == AUTO else base


def open_base(source: Source, base: str) -> Module:
    """The model of `source` computing in float32, its units held in the formats of a base."""
    if base == FULL:
        return open_wide(source.folder)
    formats = {unit.path: format for unit in source.units if (format := base_format(unit, base))}
    model = open_without(source.folder, formats)
    modules = dict(model.named_modules())

    def pack(unit: Unit, weight: mx.array) -> tuple[mx.array, ...]:
        parts = tuple(mx.quantize(weight, **formats[unit.path].parameters()))
        mx.eval(parts)
        return parts

    with small_cache():
        for unit, parts in in_process(source, pack, [unit for unit in source.units if unit.path in formats]):
            _hold_packed(modules[unit.path], parts, formats[unit.path])
    return model


def _hold_packed(module: Module, parts: Sequence[mx.array], format: Format) -> None:
    def call(method: Callable[..., mx.array], module: Module, *arguments: Any, **options: Any) -> mx.array:
        if "weight" in module:
            return method(module, *arguments, **options)
        if method is Embedding.__call__:
            return dequantize(tuple(part[arguments[0]] for part in parts), format)
        module["weight"] = backend().unpack(parts, format)
        try:
            result = method(module, *arguments, **options)
            if not backend().unpacks_lazily:
                mx.eval(result)  # or every matrix of the model would be unpacked before the first is used
        finally:
            module.pop("weight")
        return result

    hook(module, call)

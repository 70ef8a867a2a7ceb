"""An opened model: what it is, what there is to decide, and the lazy weights themselves.

Opening reads headers, the config and a few sampled bytes, whatever the size of the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from mint.core.errors import MintError
from mint.core.progress import OnProgress, ignore
from mint.formats.format import AFFINE, QUANTIZABLE, admissible
from mint.formats.units import Parameter, Unit
from mint.model.checkpoint.shards import Shard, SourceTensor, identity, read_shards
from mint.model.config import check_config
from mint.model.lineage import trace_sources
from mint.model.locate import locate
from mint.model.module_tree import DTYPES, Tree, build_tree, read_config
from mint.model.roles import UNKNOWN, layer_of, role_of


@dataclass(frozen=True, slots=True)
class Source:
    """A model folder, described: every source tensor feeds a unit or a parameter, or is listed in `dropped`."""

    folder: Path
    config: dict[str, Any]
    dtype: str  # the dtype asked for, empty for the config's own
    identity: str
    shards: tuple[Shard, ...]
    units: tuple[Unit, ...]
    parameters: tuple[Parameter, ...]
    dropped: tuple[str, ...]
    _opened: list[dict[str, mx.array]] = field(default_factory=list, compare=False, repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of the source's shards, headers included."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def layers(self) -> int:
        return 1 + max((unit.layer for unit in self.units), default=-1)

    def tensors(self) -> dict[str, SourceTensor]:
        """Every tensor on disk by its name."""
        return {tensor.name: tensor for shard in self.shards for tensor in shard.tensors}

    def arrays(self) -> dict[str, mx.array]:
        """Fresh lazy arrays of all parameters by name. Take one out, evaluate it, drop it: that bounds the memory.

        The arrays that opening made are handed out once, to the first who asks.
        """
        if self._opened:
            return self._opened.pop()
        return build_tree(self.folder, self.config, self.shards, self.dtype).parameters()


def open_source(model: Path | str, *, dtype: str = "", on_progress: OnProgress = ignore) -> Source:
    """Open a Hugging Face model: a folder, or as a `str` an id of the hub, which is downloaded if need be.

    `dtype` overrides the dtype that weights are cast to. Raises `MintError` when the folder, a shard, the config or the
    architecture is not what it has to be.
    """
    folder = locate(model, on_progress, check=check_config)
    if not folder.is_dir():
        raise MintError(f"{folder}: no such folder; needed: the folder of a Hugging Face model, or an id of the hub")
    config = read_config(folder)
    shards = read_shards(folder)
    tree = build_tree(folder, config, shards, dtype)
    arrays = tree.parameters()
    sources = trace_sources(arrays, tree.leaves)
    units = _find_units(tree, arrays, sources)
    held = {f"{unit.path}.weight" for unit in units}
    parameters = tuple(
        Parameter(name, array.shape, DTYPES[array.dtype], sources[name])
        for name, array in arrays.items()
        if name not in held
    )
    used = {name for feeders in sources.values() for name in feeders}
    dropped = tuple(name for name in tree.leaves if name not in used)
    config_text = (folder / "config.json").read_bytes()
    return Source(
        folder, config, dtype, identity(shards, config_text), shards, units, parameters, dropped, _opened=[arrays]
    )


def _find_units(tree: Tree, arrays: Mapping[str, mx.array], sources: Mapping[str, tuple[str, ...]]) -> tuple[Unit, ...]:
    predicate = getattr(tree.model, "quant_predicate", None) or (lambda path, module: True)
    units = []
    for path, module in tree.model.named_modules():
        name = f"{path}.weight"
        if not hasattr(module, "to_quantized") or name not in arrays:
            continue
        verdict = predicate(path, module)
        weight = arrays[name]
        unit = Unit(
            path=path,
            shape=weight.shape,
            dtype=DTYPES[weight.dtype],
            role=role_of(path),
            layer=layer_of(path),
            sources=sources[name],
            min_bits=int(verdict.get("bits", 0)) if isinstance(verdict, dict) else 0,
            keep_reason="" if verdict else "the model's own quant_predicate keeps it",
        )
        units.append(_with_keep_reason(unit, module))
    order = {name: index for index, name in enumerate(arrays)}
    return tuple(sorted(units, key=lambda unit: order[f"{unit.path}.weight"]))


def _with_keep_reason(unit: Unit, module: Module) -> Unit:
    """The unit, marked as kept when it has no known role or when MLX would not store it as `Format` says."""
    reason = unit.keep_reason
    if not reason and unit.role == UNKNOWN:
        reason = "no rule knows this module"
    if not reason and unit.dtype not in QUANTIZABLE:
        reason = f"{unit.dtype} weights cannot be quantized"
    if not reason and not _stores_as_planned(unit, module):
        reason = f"{type(module).__name__} does not store its weight as mx.quantize does"
    return Unit(unit.path, unit.shape, unit.dtype, unit.role, unit.layer, unit.sources, unit.min_bits, reason)


def _stores_as_planned(unit: Unit, module: Module) -> bool:
    """Whether the module, quantized lazily, holds exactly the tensors that the first admissible format plans."""
    for format in admissible(unit.shape, unit.dtype, AFFINE)[:1]:
        try:
            with mx.stream(mx.cpu):
                quantized = module.to_quantized(**format.parameters())
        except TypeError:
            return False
        planned = {tensor.name.rpartition(".")[2]: tensor for tensor in format.tensors("", unit.shape, unit.dtype)}
        for name, tensor in planned.items():
            array = quantized.get(name)
            if not isinstance(array, mx.array) or (array.shape, DTYPES[array.dtype]) != (
                tensor.shape,
                tensor.dtype,
            ):
                return False
    return True

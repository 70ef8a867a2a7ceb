"""An opened model: what it is, what there is to decide, and the lazy weights themselves.

Opening reads headers, the config and a few sampled bytes, whatever the size of the model.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from mint.core.progress import OnProgress, ignore
from mint.formats.format import AFFINE, QUANTIZABLE, Format, admissible
from mint.formats.units import KEEP_BITS, Parameter, Unit
from mint.kernels.storage import DTYPES
from mint.model.checkpoint.file_states import FileStates
from mint.model.checkpoint.shards import Shard, SourceTensor, identity, read_index, read_shards, tensors_of
from mint.model.config import check_config
from mint.model.gguf.files import PACKAGE as GGUF_PACKAGE
from mint.model.lineage import Lineage, trace_sources
from mint.model.loaders.reloading import taken_weights
from mint.model.loaders.table import tower_advice
from mint.model.loaders.vision import language_path, tower_obstacle
from mint.model.locate import locate
from mint.model.module_tree import OpenedModel, Tree, read_source_config
from mint.model.opening.kinds import require_model
from mint.model.opening.notices import (
    cast_notice,
    dropped_notice,
    head_notice,
    requantize_notice,
    scales_notice,
    tower_notice,
)
from mint.model.opening.towers import dropped_towers
from mint.model.originals.epsilons import other_epsilons
from mint.model.originals.unseen import unseen_keys
from mint.model.passes.weight_uses import weight_uses
from mint.model.roles import TOWER, UNKNOWN, UNTIED, layer_numbers, role_of
from mint.model.storages.decoding import settings_of, stacks_of
from mint.model.storages.guards import check_used
from mint.model.storages.quantized import carried_formats
from mint.model.storages.storage import GGUF, Leaf

READ = "the model reads its weight itself, which no loader could if it were packed"
PACKAGES = ("mlx-vlm", GGUF_PACKAGE)  # beside mint, mlx and mlx-lm, that results may depend on


@dataclass(frozen=True, slots=True)
class Source:
    """A model folder, described: every source tensor feeds a unit or a parameter, or is listed in `dropped`."""

    folder: Path
    config: dict[str, Any]
    dtype: str  # the dtype asked for, empty for the config's own
    loader: str  # the package whose classes hold the model: of a multimodal one the text model, or its towers too
    identity: str
    shards: tuple[Shard, ...]
    units: tuple[Unit, ...]
    parameters: tuple[Parameter, ...]
    dropped: tuple[str, ...]
    files: FileStates = field(compare=False, repr=False)  # when it was opened
    opened: OpenedModel = field(compare=False, repr=False)  # owns the module tree and the lazy weights
    carried: Mapping[str, Format] = field(default_factory=dict)  # units by path that MLX has stored in this format
    stacks: Mapping[str, tuple[Leaf, ...]] = field(default_factory=dict, repr=False)  # units whose slices are apart
    notices: tuple[str, ...] = ()  # sentences that the user must read before the work begins

    def __repr__(self) -> str:
        return f"<Source {self.folder}, {self.config['model_type']}, {len(self.units)} units, {self.nbytes:,} bytes>"

    @property
    def nbytes(self) -> int:
        """Bytes of the source's shards, headers included."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages beside mint, mlx and mlx-lm whose versions decide results of this model."""
        return packages_of(self.loader, self.config)

    @property
    def dropped_towers(self) -> tuple[str, ...]:
        """The vision and audio towers that the model has and its class drops."""
        kept = (*(unit.path for unit in self.units), *(parameter.name for parameter in self.parameters))
        return dropped_towers(self.dropped, kept)

    @property
    def layers(self) -> int:
        return 1 + max((unit.layer for unit in self.units), default=-1)

    @property
    def vocabulary(self) -> int:
        """The rows of the largest table of tokens; 0 without one."""
        return max((unit.shape[-2] for unit in self.units if unit.role in ("head", "embedding")), default=0)

    def tensors(self) -> dict[str, SourceTensor]:
        """Every tensor on disk by its name."""
        return tensors_of(self.shards)

    def arrays(self) -> dict[str, mx.array]:
        """Fresh lazy arrays of all parameters by name. Take one out, evaluate it, drop it: that bounds the memory."""
        return self.opened.arrays()

    def uncast_arrays(self) -> dict[str, mx.array]:
        """Fresh lazy arrays in the dtypes of the checkpoint."""
        return self.opened.uncast_arrays()


def open_source(
    model: Path | str, *, dtype: str = "", loader: str = "", requantize: bool = False, on_progress: OnProgress = ignore
) -> Source:
    """Open a Hugging Face model: a folder, or as a `str` an id of the hub, which is downloaded if need be.

    `dtype` overrides the dtype that weights are cast to. `loader` is the package whose classes hold the model:
    `mlx_lm` for the text model alone, `mlx_vlm` for a multimodal one with its towers; by default mlx_vlm for those
    that it knows, if it is installed. `requantize` accepts a model that MLX has quantized. Raises `MintError` when the
    folder, a shard, the config or the architecture is not valid.
    """
    check = partial(check_config, requantize=requantize)
    folder = locate(model, on_progress, check=check)
    require_model(folder)
    text = check(folder)
    names = [path.name for pattern in ("*.safetensors", "*.index.json") for path in folder.glob(pattern)]
    files = FileStates.of(folder, {"config.json", *names, *read_index(folder).values()})
    shards = read_shards(folder)
    config, readers, tree_loader = read_source_config(folder, shards, loader)
    notices = unseen_keys(readers)
    opened = OpenedModel(folder, config, shards, dtype, tree_loader.name)
    tree = opened.tree()
    notices += other_epsilons(readers, tree.model)
    lineages = _trace(opened, tree)
    sources = {name: lineage.leaves for name, lineage in lineages.items()}
    tensors = tensors_of(shards)
    notices += check_used(folder, tree.stored, tensors, sources, tree.integers)
    taken = taken_weights(folder, tree_loader, config, tree.arrays) if tree_loader.language else {}
    language = language_path(tree.model) if tree_loader.language else ""
    units = _find_units(tree, sources, language, taken)
    weights = {f"{unit.path}.weight" for unit in units}
    parameters = tuple(
        Parameter(name, array.shape, DTYPES[array.dtype], sources[name])
        for name, array in tree.arrays.items()
        if name not in weights
    )
    uses = Counter(name for feeders in sources.values() for name in feeders)
    dropped = tuple(name for name in tree.leaves if name not in uses)
    opened.unshared = [parameter.name for parameter in parameters if {uses[name] for name in parameter.sources} <= {1}]
    model = identity(shards, text)
    carried = carried_formats(units, tensors, tree.stored.settings.modules)
    layout = shards, units, parameters, dropped
    slices = {unit.path: _slices(unit, lineages[f"{unit.path}.weight"]) for unit in units}
    stacks = stacks_of(tree.stored, tensors, slices, {unit.path: unit.shape for unit in units})
    source = Source(folder, config, dtype, tree_loader.name, model, *layout, files, opened, carried, stacks)
    encoded = tree.stored.parts
    notices += requantize_notice(tree.stored)
    notices += cast_notice(units, {name: tensor for name, tensor in tensors.items() if name not in encoded})
    notices += scales_notice(units, encoded)
    if towers := source.dropped_towers:
        advice = tower_advice(tree_loader, config, loader)
        notices += tower_notice(towers, [tensors[name] for name in dropped], tree_loader.name, advice)
    lost = (tensors[name] for name in dropped if name not in tree.stored.runtime and name not in encoded)
    notices += dropped_notice(opened.stored, lost, uses, config, tree_loader.name)
    notices += head_notice(folder, units, [tensors[name] for name in dropped], tensors)
    return replace(source, notices=notices)


def packages_of(loader: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Those of `PACKAGES` that results of a model with this loader and config depend on."""
    is_gguf = settings_of(config).method == GGUF
    used = {loader.replace("_", "-"), *([GGUF_PACKAGE] if is_gguf else [])}
    return tuple(package for package in PACKAGES if package in used)


def _slices(unit: Unit, lineage: Lineage) -> tuple[str, ...]:
    """The leaves that hold the slices of a stack, or the rows of a matrix."""
    return lineage.slices if len(unit.shape) > 2 or lineage.is_plain else ()


def _trace(opened: OpenedModel, tree: Tree) -> dict[str, Lineage]:
    """For every parameter the source tensors that feed it, also those that only say how others are decoded.

    Slices are named by the decoded weights.

    Stand-ins take the place of decoded weights: the graphs of their decoding make tracing a large model slow.
    """
    stored = tree.stored
    if not stored.encoded:
        return trace_sources(tree.arrays, tree.leaves)
    apart = stored.parts.keys() | stored.runtime
    weights = {name: leaf for name, leaf in tree.leaves.items() if name not in apart}
    weights |= {name: mx.zeros(weight.shape, mx.bfloat16) for name, weight in stored.encoded.items()}
    parts = {name: [part.name for part in weight.parts.values()] for name, weight in stored.encoded.items()}
    order = {name: index for index, name in enumerate(tree.leaves)}
    lineages = {}
    for parameter, lineage in trace_sources(opened.parameters_of(weights), weights).items():
        leaves = [part for name in lineage.leaves for part in parts.get(name, [name])]
        lineages[parameter] = replace(lineage, leaves=tuple(sorted(leaves, key=order.__getitem__)))
    return lineages


def _find_units(
    tree: Tree, sources: Mapping[str, tuple[str, ...]], language: str, taken: Mapping[str, str]
) -> tuple[Unit, ...]:
    """The units of a tree in its order; those outside of the `language` model, if it has a path, are of towers.

    `taken` names the parameters that a loader takes from others.
    """
    predicate = getattr(tree.model, "quant_predicate", None) or (lambda path, module: True)
    modules = dict(tree.model.named_modules())
    order = [name.removesuffix(".weight") for name in tree.arrays if name.endswith(".weight")]
    paths = [path for path in order if hasattr(modules.get(path), "to_quantized")]
    towers = {path for path in paths if language and not path.startswith(f"{language}.")}
    layers = layer_numbers(path for path in paths if path not in towers) | dict.fromkeys(towers, -1)
    uses, units = weight_uses(tree.model, [path for path in paths if path not in towers]), []
    for path in paths:
        verdict, weight = path in towers or predicate(path, modules[path]), tree.arrays[f"{path}.weight"]
        role = TOWER if path in towers else role_of(path)
        unit = Unit(
            path, weight.shape, DTYPES[weight.dtype], role, layers[path], sources[f"{path}.weight"],
            min_bits=_own_floor(verdict),
            twin=taken.get(f"{path}.weight", "").removesuffix(".weight"),
        )  # fmt: skip
        reason = READ if path in uses.read else _keep_reason(unit, modules[path])
        if role == TOWER:
            reason = reason or tower_obstacle(path, modules[path], tree.model)
        units.append(replace(unit, keep_reason=reason))
    if not any(unit.role == "head" for unit in units):
        untied = {unit.path for unit in units if unit.role == "embedding"} - uses.multiplied
        units = [replace(unit, role=UNTIED) if unit.path in untied else unit for unit in units]
    return tuple(units)


def _own_floor(verdict: object) -> int:
    """The fewest bits by the answer of a model's `quant_predicate`: false, true, or the parameters of a format.

    mlx_lm asks it when it quantizes, not when it loads: a written model says by its tensors what is quantized.
    """
    return int(verdict.get("bits", 0)) if isinstance(verdict, dict) else 0 if verdict else KEEP_BITS


def _keep_reason(unit: Unit, module: Module) -> str:
    """The reason to keep a unit: it has no known role, or MLX would not store it as `Format` says; else empty."""
    if unit.role == UNKNOWN:
        return "no rule knows this module"
    if unit.dtype not in QUANTIZABLE:
        return f"{unit.dtype} weights cannot be quantized"
    if not _stores_as_planned(unit, module):
        return f"{type(module).__name__} does not store its weight as mx.quantize does"
    return ""


def _stores_as_planned(unit: Unit, module: Module) -> bool:
    """True if the module, quantized lazily, has exactly the tensors that the first admissible format plans."""
    for format in admissible(unit.shape, unit.dtype, AFFINE)[:1]:
        try:
            with mx.stream(mx.cpu):
                quantized = module.to_quantized(**format.parameters())
        except TypeError:
            return False
        tensors = {tensor.name.rpartition(".")[2]: tensor for tensor in format.tensors("", unit.shape, unit.dtype)}
        arrays = {name: quantized[name] for name in tensors if isinstance(quantized.get(name), mx.array)}
        planned = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        return planned == {name: (array.shape, DTYPES[array.dtype]) for name, array in arrays.items()}
    return True

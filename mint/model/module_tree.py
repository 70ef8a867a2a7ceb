"""The lazy MLX module tree of a model folder, built with the classes of the package that will load the model.

Names come from MLX, never from guessing: the tree is what the loader would build from these files, with experts
stacked, fused tensors split and dropped heads gone. Nothing is read: weights are lazy arrays. `loaders/table.py` lists
the packages that bring such classes.
The whole graph lives on the CPU stream, so that evaluating a weight never pages from disk inside a GPU command
buffer (a lazy graph that does trips Metal's watchdog, ml-explore/mlx#3803).
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten, tree_map, tree_map_with_path, tree_unflatten

from mint.core.cache import recall
from mint.core.errors import MintError
from mint.core.later import importing_later
from mint.model.checkpoint.lazy import lazy_arrays
from mint.model.checkpoint.reader import StoredModel
from mint.model.checkpoint.shards import Shard, read_shards, tensors_of
from mint.model.loaders.loader import MLX_LM, Arrays, TreeLoader
from mint.model.loaders.table import in_known_type, tree_loader
from mint.model.loaders.vision import PROCESSOR_NAME, is_installed, read_processor
from mint.model.opening.faults import explained, misfits
from mint.model.opening.names import advice_on, check_head, spellings, without_extras
from mint.model.opening.readers import Reader
from mint.model.opening.renamed import lift_renamed, lift_tied
from mint.model.opening.rope import lift_rope
from mint.model.storages.decoding import Stored, decoded, decoded_zeros, find_stored, stacks_of, without_settings
from mint.model.storages.guards import undecoded_of
from mint.model.storages.storage import Leaf, Settings

with importing_later("transformers", "huggingface_hub", "mlx_lm.tokenizer_utils"):
    from mlx_lm.convert import MODEL_CONVERSION_DTYPES
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_config, load_tokenizer, save_config

UNCAST = "as stored"  # in place of a dtype to cast to


@dataclass(frozen=True, slots=True)
class Tree:
    """The modules of a model, its lazy parameters in their order, and the lazy source tensors that feed them.

    `stored` says which of these tensors are parts of encoded weights; `integers` are the parameters that the model's
    class declares as integers.

    The modules hold stand-ins of the same shapes and dtypes instead of the parameters: they are for forward passes
    that compute nothing, and keep no weight in memory that was evaluated.
    """

    model: Module
    arrays: Arrays
    leaves: Arrays
    stored: Stored
    integers: frozenset[str]


class OpenedModel:
    """Owns the module tree of a model: built when it is first needed, shared by all passes that compute nothing.

    The weights change their owner: an array that its new owner evaluates and drops leaves the memory. A lazy
    array can be evaluated once, so a second reading of the weights builds the tree again.
    """

    def __init__(
        self, folder: Path, config: dict[str, Any], shards: tuple[Shard, ...], dtype: str = "", loader: str = ""
    ) -> None:
        self._files = folder, config, shards, dtype, loader
        self._tree: Tree | None = None  # until its arrays get another owner
        self._model: Module | None = None
        self.unshared: Collection[str] = ()  # parameters that share no source tensor with others
        self._left: Arrays = {}  # these, of the last reading

    @cached_property
    def stored(self) -> StoredModel:
        """The weight files, for reading tensors as they are."""
        folder, _, shards, *_ = self._files
        return StoredModel(folder, tensors_of(shards))

    def tree(self) -> Tree:
        """The tree, for a look: its arrays will get another owner."""
        if self._tree is None:
            self._tree = build_tree(*self._files)
            self._model = self._model or self._tree.model
        return self._tree

    @property
    def model(self) -> Module:
        """The modules over stand-ins of the parameters. Take off every hook after use."""
        return self._model or self.tree().model

    def arrays(self) -> Arrays:
        """Fresh lazy arrays of all parameters by name, in the order of the module tree."""
        return self.release().arrays

    def release(self) -> Tree:
        """The tree, whose arrays get a new owner."""
        tree, self._tree = self.tree(), None
        self._left = {name: tree.arrays[name] for name in self.unshared}
        return tree

    def uncast_arrays(self) -> Arrays:
        """Fresh lazy arrays of all parameters in the dtypes of the checkpoint."""
        folder, config, shards, _, loader = self._files
        return build_tree(folder, config, shards, UNCAST, loader).arrays

    @property
    def decoded_dtype(self) -> mx.Dtype:
        """The dtype to which encoded weights are decoded."""
        _, config, _, dtype, _ = self._files
        decoded_dtype: mx.Dtype = getattr(mx, _dtype_name(config, dtype) or "bfloat16")
        return decoded_dtype

    def parameters_of(self, weights: Arrays) -> Arrays:
        """The lazy parameters of this model over other decoded tensors, in place of those of its checkpoint."""
        folder, config, shards, dtype, loader = self._files
        with mx.stream(mx.cpu):
            plain = Stored(Settings(), {}, frozenset())
            model, _ = _built(folder, without_settings(config), weights, plain, shards, dtype, loader)
        return dict(tree_flatten(model.parameters()))

    def remade(self, weights: Arrays, parameter: str) -> mx.array:
        """The lazy `parameter` that the class makes of these decoded tensors, which may hold some slices of their own.

        Zeros stand in for all other tensors.
        """
        folder, config, shards, _, loader_name = self._files
        config = without_settings(config)
        loader = tree_loader(folder, config, tensors_of(shards), loader_name)
        for spelled in spellings(self._stand_ins | weights, config):
            with suppress(MintError), explained(f"{folder}: the weights do not fit", "", config):
                sanitized = loader.sanitized(loader.module(config), dict(spelled))
                if parameter in sanitized:
                    return sanitized[parameter]
        raise AssertionError(f"{parameter} is not made of {', '.join(weights)}")

    @cached_property
    def _stand_ins(self) -> Arrays:
        """Lazy zeros in place of all decoded tensors."""
        folder, config, shards, *_ = self._files
        return decoded_zeros(find_stored(folder, config, shards), tensors_of(shards), self.decoded_dtype)

    def stacks(
        self, shapes: Mapping[str, tuple[int, ...]], slices: Mapping[str, Sequence[str]]
    ) -> dict[str, tuple[Leaf, ...]]:
        """The leaves of stacks by the paths of units, from the names that another process found (`stacks_of`)."""
        folder, config, shards, *_ = self._files
        return stacks_of(find_stored(folder, config, shards), tensors_of(shards), slices, shapes) if slices else {}

    def take(self, names: Collection[str]) -> Arrays:
        """Fresh lazy arrays of these parameters, if possible those that the last reading of `arrays` left."""
        arrays = self._left if self._left.keys() >= set(names) else self.arrays()
        self._left = {}
        return {name: arrays[name] for name in names}


def build_tree(
    folder: Path, config: dict[str, Any], shards: tuple[Shard, ...], dtype: str = "", loader: str = ""
) -> Tree:
    """The module tree of the model in `folder` over lazy weights, decoded, and cast as `mlx_lm.convert` casts them.

    `dtype` (float16, bfloat16, float32, or `UNCAST`) overrides the config's own unless it is empty, `loader` the choice
    of `tree_loader`. Raises `MintError` when no loader knows the model type or when weights and modules do not fit.
    """
    with mx.stream(mx.cpu):
        leaves = {name: array for shard in shards for name, array in lazy_arrays(folder, shard).items()}
        stored = find_stored(folder, config, shards)
        model, integers = _built(folder, without_settings(config), leaves, stored, shards, dtype, loader)
    parameters = model.parameters()
    model.update(tree_map(lambda array: mx.zeros(array.shape, array.dtype), parameters))  # lazy, like the parameters
    return Tree(model, dict(tree_flatten(parameters)), leaves, stored, integers)


def _built(
    folder: Path,
    config: dict[str, Any],
    leaves: Arrays,
    stored: Stored,
    shards: tuple[Shard, ...],
    dtype: str,
    loader_name: str,
) -> tuple[Module, frozenset[str]]:
    """The modules of a config over its decoded and cast tensors, and the names of the parameters that are integers.

    The error is that of the names that fit best, and of the checkpoint's own where others fit no better.
    """
    loader = tree_loader(folder, config, tensors_of(shards), loader_name)
    kind, errors = f"{loader.name}'s {config['model_type']} model", []
    without = ", or the text model alone (--text-only)" if loader.language else ""
    remedy = f"needed: the config.json of the original model; download it again{without}"
    complete = undecoded_of(stored, shards) or f"needed: a complete model of that type{without}"
    own_weights = decoded(stored, leaves, getattr(mx, _dtype_name(config, dtype) or "bfloat16"))
    complete = advice_on(own_weights) or complete
    checkpoint = StoredModel(folder, tensors_of(shards))
    for weights in spellings(own_weights, config, lambda name: name in leaves and not checkpoint.raw(name).any()):
        try:
            with explained(f"{folder}: {kind} cannot be built from config.json", remedy, config):
                model = loader.module(config)
                declared = dict(tree_flatten(model.parameters()))
            with explained(f"{folder}: the weights do not fit {kind}", complete, config):
                sanitized = loader.sanitized(model, dict(weights))
                parameters = dict(tree_flatten(model.parameters()))
                check_head(sanitized, parameters)
                _fill(model, without_extras(sanitized, parameters, shards))
        except MintError as error:
            errors.append(error)
        else:
            _cast(model, config, dtype)
            return model, frozenset(
                name for name, array in declared.items() if not mx.issubdtype(array.dtype, mx.inexact)
            )
    raise min(errors, key=misfits)


def _fill(model: Module, weights: Arrays) -> None:
    model.eval()
    model.load_weights(list(weights.items()), strict=True)


def _cast(model: Module, config: dict[str, Any], dtype: str) -> None:
    """Cast to `dtype`, else to the dtype of the config; `UNCAST` casts nothing."""
    name = _dtype_name(config, dtype)
    if not name:
        return
    target = getattr(mx, name)
    may_cast = getattr(model, "cast_predicate", lambda _: True)

    def cast(path: str, array: mx.array) -> mx.array:
        return array.astype(target) if may_cast(path) and mx.issubdtype(array.dtype, mx.floating) else array

    model.update(tree_map_with_path(cast, model.parameters()))


def _dtype_name(config: dict[str, Any], dtype: str) -> str:
    """The dtype to cast to: `dtype`, else the config's torch_dtype, its dtype (transformers 5), or the text config's.

    Empty for no cast. `mlx_lm.convert` 0.32 does the same, except for the config's own `dtype`, which it overlooks.
    Raises `MintError` for a `dtype` that mlx_lm does not cast to; such ones of a config mean no cast.
    """
    if dtype not in ("", UNCAST, *MODEL_CONVERSION_DTYPES):
        raise MintError(f"dtype {dtype!r}; needed one of: {', '.join(MODEL_CONVERSION_DTYPES)}")
    name = dtype or config.get("torch_dtype") or config.get("dtype") or (config.get("text_config") or {}).get("dtype")
    return str(name) if name in MODEL_CONVERSION_DTYPES else ""


def write_config(config: dict[str, Any], folder: Path, *, keep_vision_config: bool) -> None:
    """Write config.json as mlx_lm writes it, without the keys of the source's own quantization."""
    quantization = config.get("quantization") or {}
    own = {name: quantization for name in ("quantization", "quantization_config") if quantization.get("bits")}
    save_config({**without_settings(config), **own}, folder / "config.json", keep_vision_config=keep_vision_config)


def load_stock(folder: Path) -> Module:
    """The model in `folder` as its users load it, quantized modules and all, over lazy weights."""
    return tree_loader(folder, load_config(folder), tensors_of(read_shards(folder))).load(folder)


def is_quantized(folder: Path) -> bool:
    """True for a model whose modules MLX has quantized; mlx_lm loads it as it is meant."""
    return bool((load_config(folder).get("quantization") or {}).get("bits"))


def read_source_config(
    folder: Path, shards: tuple[Shard, ...], loader_name: str = ""
) -> tuple[dict[str, Any], tuple[Reader, ...], TreeLoader]:
    """The config of an original model in the words of its class, the classes that read it, and the loader."""
    with explained(f"{folder}: the config cannot be read", "download config.json and generation_config.json again", {}):
        config = load_config(folder)
    tensors = tensors_of(shards)
    has_head = any(name.endswith("lm_head.weight") for name in tensors)
    known = in_known_type(config, loader_name, has_head=has_head)
    is_text_alone = "text_config" in config and "text_config" not in known
    config = known
    loader = tree_loader(folder, config, tensors, MLX_LM.name if is_text_alone else loader_name)
    with explained(f"{folder}: {loader.name} cannot read config.json", "download it again", config):
        own_readers = loader.readers(config)
    lift_rope(own_readers)
    lift_renamed(own_readers)
    lift_tied(config, own_readers, has_head=has_head)
    return config, own_readers, loader


def load_source(folder: Path, loader: str = "") -> Module:
    """The original model in `folder` over its lazy weights: with the config, names and decoding of `build_tree`.

    Weights that are encoded have the dtype of the config, others their own.
    """
    shards = read_shards(folder)
    config = read_source_config(folder, shards, loader)[0]
    tree = build_tree(folder, config, shards, "" if find_stored(folder, config, shards).encoded else UNCAST, loader)
    tree.model.update(tree_unflatten(list(tree.arrays.items())))
    return tree.model


def load_plain(folder: Path, weights: Arrays) -> Module:
    """The same model with none of its modules quantized, over `weights` by parameter name."""
    config = load_config(folder)
    loader = tree_loader(folder, config, weights)
    model = loader.module(config)
    _fill(model, loader.sanitized(model, weights))
    return model


def has_tokenizer(folder: Path) -> bool:
    """True if `folder` has a tokenizer that mlx_lm can load."""
    return (folder / "tokenizer_config.json").exists() or (folder / "tokenizer.json").exists()


def tokenizer_fault(folder: Path) -> str:
    """A sentence that says why `mlx_lm.load` fails at the tokenizer in `folder`; empty if it loads or there is none.

    Code that the tokenizer brings is not run.
    """
    return _fault("tokenizer", "mlx_lm", folder, read_tokenizer) if has_tokenizer(folder) else ""


def processor_fault(folder: Path) -> str:
    """The same of `mlx_vlm.load` and the processor of pictures, which a text model or one without tokenizer lacks."""
    if not is_installed() or not (folder / PROCESSOR_NAME).exists() or not has_tokenizer(folder):
        return ""
    return _fault("processor", "mlx_vlm", folder, read_processor)


def _fault(part: str, loader: str, folder: Path, read: Callable[[Path], object]) -> str:
    try:
        read(folder)
    except Exception as error:  # transformers raises any kind
        reason = " ".join(str(error).split())[:200]
        if has_own_code(folder):
            return (
                f"the {part} brings its own code, which is not run here, and does not load without it ({reason}); "
                "whoever loads the model needs --trust-remote-code"
            )
        return f"{loader} does not load the {part} ({reason})"
    return ""


def has_own_code(folder: Path) -> bool:
    """True if a config in `folder` names classes in files of its own."""
    for name in ("tokenizer_config.json", "config.json", PROCESSOR_NAME, "processor_config.json"):
        config = recall(folder / name, json.loads)
        if isinstance(config, dict) and "auto_map" in config:
            return True
    return False


# mlx_lm's own functions; any exception of them comes through
read_tokenizer: Callable[[Path], Any] = partial(  # transformers would ask on the terminal
    load_tokenizer, tokenizer_config_extra={"trust_remote_code": False}
)
read_loaded_config: Callable[[Path], dict[str, Any]] = load_config  # with the end tokens of the generation config
make_cache: Callable[[Module], list[Any]] = make_prompt_cache  # the empty caches of one conversation

"""mlx_vlm: classes that hold vision and audio towers beside the language model.

A model is built by the steps of `mlx_vlm.utils.load_model` (0.7): the same sections of the config, and the `sanitize`
of every part in its order. A call of the model on tokens alone is a call of its language model over fresh positions,
as mlx_vlm decodes text. So everything that runs a text model runs these too, and the towers are never read for it.
"""

import ast
import inspect
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.nn.layers.linear import Linear
from mlx.utils import tree_flatten, tree_unflatten

from mint.core.errors import MintError
from mint.model.loaders.loader import Arrays, TreeLoader
from mint.model.opening.readers import Reader, reader_of

_PACKAGE = "mlx_vlm"
_LANGUAGE = "language_model"
PROCESSOR_NAME = "preprocessor_config.json"
_MODEL_FILE = re.compile(rf"{_PACKAGE}\.models\.\w+\.\w+")  # a file of a model, not one that all share
_TEXTS = ("text_config", "llm_config")
_SECTIONS = ["text", "vision", "perceiver", "projector", "audio"]  # of a config, each with a class of its own
_PARTS = (("VisionModel", "vision_config"), ("LanguageModel", "text_config"), ("AudioModel", "audio_config"))
_BOTH_WAYS = "use_bidirectional_attention"  # of a prompt; a text that no prompt begins is read as it is written
_POSITIONS, _POSITION_SHIFTS = "_position_ids", "_rope_deltas"  # a language model keeps those of its last prompt


def is_installed() -> bool:
    """True if mlx_vlm is there; it is not imported."""
    return find_spec(_PACKAGE) is not None


def _takes(config: dict[str, Any]) -> bool:
    if not is_installed():
        return False
    from mlx_vlm.utils import get_model_type

    name = str(get_model_type(config))
    return name.isidentifier() and find_spec(f"{_PACKAGE}.models.{name}") is not None


def _module(config: dict[str, Any]) -> Module:
    """The modules of a config; raises `MintError` for a class whose language model is no part of its own."""
    from mlx_vlm.utils import apply_generation_config_defaults, get_model_and_args, update_module_configs

    config = deepcopy(config)  # the classes write to it
    package, _ = get_model_and_args(config)
    config.setdefault("text_config", config.pop("llm_config", {}))
    for section in ("vision_config", "audio_config"):
        config.setdefault(section, {})
    arguments = update_module_configs(package.ModelConfig.from_dict(config), package, config, _SECTIONS)
    return _answering_text(package.Model(apply_generation_config_defaults(arguments, config)), package)


def _readers(config: dict[str, Any]) -> tuple[Reader, ...]:
    """The class of the text model, over its section of the config, or over the top where it takes its values from.

    Values that such a config has in its section alone are copied to the top, and the tower gets its older type.
    """
    from mlx_vlm.utils import get_model_and_args

    package, _ = get_model_and_args(config)
    _rename_tower(package, config)
    key = next((key for key in _TEXTS if isinstance(config.get(key), dict)), "")
    if _takes_text_from_top(package, config):
        for name, value in config.get(key, {}).items():
            config.setdefault(name, value)
        key = ""
    if not hasattr(package, "TextConfig"):
        return ()
    modules = {module: None for part in (package.TextConfig, package.LanguageModel) for module in _modules_of(part)}
    return (reader_of(key, config[key] if key else config, package.TextConfig, modules),)


def _modules_of(part: type) -> list[ModuleType]:
    """The module of a class, and those of the models that it takes parts from."""
    module = sys.modules[part.__module__]
    others = [getattr(value, "__module__", "") for value in vars(module).values() if isinstance(value, type)]
    return [module, *(sys.modules[name] for name in dict.fromkeys(others) if _MODEL_FILE.match(name))]


def _rename_tower(package: ModuleType, config: dict[str, Any]) -> None:
    """Give the tower its type in older configs: newer ones put the whole model's before `_vision`.

    They also name its dtype, which some classes do not take.
    """
    tower, name = config.get("vision_config"), str(config["model_type"])
    if isinstance(tower, dict):
        tower.pop("dtype", None)
    if isinstance(tower, dict) and tower.get("model_type") == f"{name}_vision":
        own = getattr(package.VisionConfig, "model_type", name)
        tower["model_type"] = own if isinstance(own, str) else name


def _takes_text_from_top(package: ModuleType, config: dict[str, Any]) -> bool:
    """True for a class that overwrites the section of the text with the config itself, as older ones of Qwen do."""
    try:
        text = package.ModelConfig.from_dict({**deepcopy(config), "text_config": {"own": True}}).text_config
    except Exception:  # of a class that builds the text model's config from the section
        return False
    return isinstance(text, dict) and "own" not in text


def _sanitized(model: Any, weights: Arrays) -> Arrays:
    """The weights as the `sanitize` of the model and of its parts leave them; towers without weights are dropped."""
    from mlx_vlm.utils import _drop_modules_without_weights, sanitize_weights

    weights = sanitize_weights(model, weights)
    for part, section in _PARTS:
        if hasattr(model.package, part) and hasattr(model.config, section):
            weights = sanitize_weights(getattr(model.package, part), weights, getattr(model.config, section))
    with _without_warnings():
        _drop_modules_without_weights(model, weights)
    return weights


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Log errors alone: the names of a checkpoint are tried in turn, and every wrong try would be a warning."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


def _load(folder: Path) -> Module:
    from mlx_vlm.utils import get_model_and_args, load_config, load_model

    return _answering_text(load_model(folder, lazy=True), get_model_and_args(load_config(folder))[0])


def _answering_text(model: Any, package: ModuleType) -> Module:
    """The model, its calls those of its language model; `package` holds the classes of its parts.

    A model that reads its prompt both ways (PaliGemma) writes from left to right, as all text is read here.
    """
    if not language_path(model):
        fault = f"{type(model).__module__}.{type(model).__name__} has no part {_LANGUAGE}"
        raise MintError(f"{fault}; needed: a class that holds its language model apart")
    if getattr(config := getattr(model.language_model, "config", None), _BOTH_WAYS, None) is True:
        setattr(config, _BOTH_WAYS, False)
    kind = type(model)
    members = {"__call__": _call_on_text, "make_cache": _make_cache, "package": package, "pictured": kind.__call__}
    model.__class__ = type(kind.__name__, (kind,), members)
    answering: Module = model
    return answering


def _call_on_text(model: Any, tokens: mx.array, cache: Any = None) -> mx.array:
    """The logits (B, L, V) of the language model after tokens (B, L) that follow those in the caches."""
    language = model.language_model
    if hasattr(language, _POSITIONS):
        setattr(language, _POSITIONS, None)
        setattr(language, _POSITION_SHIFTS, mx.zeros((tokens.shape[0], 1), mx.int32))
    logits: mx.array = language(tokens, cache=cache).logits
    return logits


def _make_cache(model: Any) -> list[Any]:
    from mlx_vlm.models.cache import make_prompt_cache

    caches: list[Any] = make_prompt_cache(model.language_model)
    return caches


def read_processor(folder: Path) -> None:
    """Load the processor of pictures in `folder` as mlx_vlm does; any exception of it comes through."""
    from mlx_vlm.utils import load_processor

    load_processor(folder, add_detokenizer=False, trust_remote_code=False)


def language_path(model: Module) -> str:
    """The path of the language model in a model with towers, which the class may name otherwise (Moondream: `text`).

    Empty where no part is the language model.
    """
    language = getattr(model, _LANGUAGE, None)
    return next((path for path, part in model.named_modules() if path and part is language), "")


def tower_parameters(model: Module) -> Arrays:
    """The parameters beside the language model by name; none of a text model."""
    if not hasattr(model, "package"):
        return {}
    parameters: Any = tree_flatten(model.parameters())
    path = language_path(model)
    return {name: array for name, array in parameters if not name.startswith(f"{path}.")}


def release_towers(model: Module) -> None:
    """Drop the parameters beside the language model: a pass over text uses none of them."""
    model.update(tree_unflatten([(name, mx.zeros(())) for name in tower_parameters(model)]))


def tower_obstacle(path: str, module: Module, model: Module) -> str:
    """The reason to keep the module at `path` in a tower; empty for a matrix that is only called.

    No pass over text shows how a tower uses its weights, so the code of its classes tells it.
    """
    if type(module) is not Linear:
        return "only matrices of a tower are quantized"
    *_, owner, name = [part for part in f"self.{path}".split(".") if not part.isdecimal()]
    files = {kind.__module__ for _, part in model.named_modules() for kind in type(part).__mro__}
    reads = set().union(*(_weights_read(file) for file in files if file.startswith(f"{_PACKAGE}.")))
    return "the code of the tower reads its weight itself" if {(owner, name), ("self", name)} & reads else ""


@cache
def _weights_read(module: str) -> frozenset[tuple[str, str]]:
    """The modules whose `weight` the code of a module reads, each by its owner's name and its own; shapes are free."""
    nodes = list(ast.walk(ast.parse(inspect.getsource(sys.modules[module]))))
    shapes = {id(node.value) for node in nodes if isinstance(node, ast.Attribute) and node.attr == "shape"}
    return frozenset(
        (_name_of(node.value.value), node.value.attr)
        for node in nodes
        if isinstance(node, ast.Attribute)
        and node.attr == "weight"
        and isinstance(node.value, ast.Attribute)
        and id(node) not in shapes
    )


def _name_of(node: ast.expr) -> str:
    """The last name of an expression; `self` where there is none, such as for an item of a list."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else "self"


MLX_VLM = TreeLoader(_PACKAGE, _takes, _module, _sanitized, _readers, load=_load, language=_LANGUAGE)

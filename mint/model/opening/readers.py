"""The classes that read a model's config, and the keys that each of them can see.

Classes take the keys that are their fields and ignore all others in silence. A part of a config, such as
`text_config`, is read by the class of its own `model_type`, or by the class nearby that knows most of its keys.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

_MODELS = ".models."  # behind the name of a package, and before that of a model
_PACKAGE = f"mlx_lm{_MODELS}"
_TOWERS = ("vision", "visual", "audio", "image", "speech")  # their parts of a config are read by no text model


@dataclass(frozen=True, slots=True)
class Reader:
    """A part of a config, and the fields of the class that reads it."""

    key: str  # of the part; empty for the config itself
    values: dict[str, Any]
    package: str  # of the class: mlx_lm or mlx_vlm
    model: str  # the module of the class, such as llama
    fields: frozenset[str]
    required: tuple[str, ...]  # of the fields, those without default
    code: str  # the text of that module, and of those that it takes its parts from

    @property
    def title(self) -> str:
        """The class in words."""
        return f"{self.package}'s {self.model} model"

    def sees(self, name: str) -> bool:
        """True for a key that the code takes as an attribute or in quotes; a field alone may be read by nothing."""
        return bool(re.search(rf'\.{re.escape(name)}\b|"{re.escape(name)}"', self.code))

    @property
    def rope_code(self) -> str:
        """The text of the package's rotary embeddings."""
        return inspect.getsource(import_module(f"{self.package}{_MODELS}rope_utils"))


ClassOf = Callable[[dict[str, Any]], type]  # the class that reads a config; raises for an unknown model type


def readers(config: dict[str, Any], class_of: ClassOf) -> tuple[Reader, ...]:
    """The config and its parts, each with its class; raises as `class_of` for a config of an unknown model type."""
    args = class_of(config)
    top = _reader("", config, args)
    parts = ((key, part) for key, part in config.items() if isinstance(part, dict) and is_text_part(key))
    nearby = [kind for module in _modules_near(args.__module__) for kind in _classes_in(module)]
    return (top, *(_reader(key, part, _class_near(part, class_of, nearby)) for key, part in parts))


def is_text_part(key: str) -> bool:
    """True for the keys of sub-configs that a text model may read: text_config, and not vision_config."""
    return key.endswith("_config") and "quant" not in key and not any(tower in key for tower in _TOWERS)


def reader_of(key: str, values: dict[str, Any], args: type, modules: Iterable[ModuleType]) -> Reader:
    """A part of a config whose class is `args`, in one of the `modules` that compute with it."""
    declared = fields(args) if is_dataclass(args) else ()
    bare = (field for field in declared if field.default is MISSING and field.default_factory is MISSING)
    package, _, model = args.__module__.partition(_MODELS)
    return Reader(
        key,
        values,
        package,
        model.partition(".")[0],
        frozenset(field.name for field in declared),
        tuple(field.name for field in bare),
        "".join(map(inspect.getsource, modules)),
    )


def _reader(key: str, values: dict[str, Any], args: type) -> Reader:
    return reader_of(key, values, args, _modules_near(args.__module__))


def _class_near(part: dict[str, Any], class_of: ClassOf, nearby: list[type]) -> type:
    """The class of the part's own model type if it is nearby, else the one nearby that knows most of the part."""
    try:
        args = class_of(part)
    except (Exception, SystemExit):  # of the import of a model, or for an unknown or missing model type
        args = None
    if args in nearby:
        return args
    return max(nearby, key=lambda kind: len(part.keys() & {field.name for field in fields(kind)}))


def _modules_near(name: str) -> list[ModuleType]:
    """A module, and the other models that it imports or takes classes and functions from."""
    module = sys.modules[name]
    names = [getattr(value, "__module__", "") or "" for value in vars(module).values()]
    others = [value for value in vars(module).values() if isinstance(value, ModuleType)]
    others += [sys.modules[other] for other in dict.fromkeys(names) if other in sys.modules]
    models = [near for near in others if near.__name__.startswith(_PACKAGE) and hasattr(near, "ModelArgs")]
    return list(dict.fromkeys((module, *models)))


def _classes_in(module: ModuleType) -> Iterator[type]:
    """The classes of arguments in a module."""
    for kind in vars(module).values():
        if isinstance(kind, type) and is_dataclass(kind) and hasattr(kind, "from_dict") and fields(kind):
            yield kind

"""A package that makes module trees, and mlx_lm, whose classes hold the text model alone."""

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from mint.core.errors import MintError
from mint.core.later import importing_later
from mint.model.opening.readers import Reader, readers

with importing_later("transformers", "huggingface_hub", "mlx_lm.tokenizer_utils"):
    from mlx_lm.utils import _get_classes, load_model

Arrays = dict[str, mx.array]  # by name
_VOCABULARY = "vocab_size"


def load_text_model(folder: Path) -> Module:
    """The model in `folder` as mlx_lm builds it, quantized modules and all, over lazy weights."""
    model: Module = load_model(folder, lazy=True)[0]
    return model


@dataclass(frozen=True, slots=True)
class TreeLoader:
    """A package whose model classes make module trees."""

    name: str
    takes: Callable[[dict[str, Any]], bool]  # true for a config whose model it knows
    module: Callable[[dict[str, Any]], Module]  # the modules of a config
    sanitized: Callable[[Module, Arrays], Arrays]  # a checkpoint's tensors as the parameters of these modules
    readers: Callable[[dict[str, Any]], tuple[Reader, ...]] = lambda config: ()  # the classes that read a config
    load: Callable[[Path], Module] = load_text_model  # a written model, as its users load it
    language: str = ""  # the path of the language model in a tree that holds towers too


def _takes(config: dict[str, Any]) -> bool:
    """True if mlx_lm has a model of this type; what its import prints stays off standard output.

    Raises `MintError` with those words for a model that ends the process, since it lacks a package.
    """
    words = StringIO()
    try:
        with redirect_stdout(words):
            return bool(_get_classes(config))
    except SystemExit as error:
        message = " ".join(words.getvalue().split())
        raise MintError(f"mlx_lm does not import its {config['model_type']} model; needed: {message}") from error
    except Exception:  # of a module that holds no model
        return False
    finally:
        sys.stderr.write(words.getvalue())


def _module(config: dict[str, Any]) -> Module:
    model_class, args_class = _get_classes(config)
    model: Module = model_class(args_class.from_dict(config))
    return model


def _sanitized(model: Module, weights: Arrays) -> Arrays:
    """The weights as the model's own `sanitize` leaves them; some models change their tree there."""
    sanitized: Arrays = getattr(model, "sanitize", dict)(weights)
    return sanitized


def _readers(config: dict[str, Any]) -> tuple[Reader, ...]:
    def class_of(part: dict[str, Any]) -> type:
        args: type = _get_classes(part)[1]
        return args

    known = readers(config, class_of)
    text = config.get("text_config")
    if isinstance(text, dict) and _VOCABULARY in known[0].fields and _VOCABULARY in text:
        config.setdefault(_VOCABULARY, text[_VOCABULARY])  # such a class overwrites that of the text with its own
    return known


MLX_LM = TreeLoader("mlx_lm", _takes, _module, _sanitized, _readers)

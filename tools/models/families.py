"""Writes a tiny random checkpoint of any model family that mlx_lm has a file for.

    python -m tools.models.families NAME OUT

The config is made from the fields of the family's own arguments: a small value for every name in `SMALL`, a guess by
type for other required fields, and the few settings of `tools/models/family_configs.py`. Tensors have the names of
the class's own parameters, which its `sanitize` passes through. So a family that a new mlx_lm brings is tried too.
"""

import contextlib
import importlib
import json
import sys
from copy import deepcopy
from dataclasses import MISSING, fields
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import mlx.core as mx
import mlx_lm.models
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten

from mint.core.errors import MintError
from mint.model.loaders.loader import MLX_LM
from tools.models.family_configs import MISSING as NOT_MADE
from tools.models.family_configs import OVERRIDES, SMALL

_NOT_FAMILIES = {
    "activations", "base", "bitlinear_layers", "cache", "gated_delta", "mla", "pipeline", "rope_utils", "ssm",
    "switch_layers",
}  # fmt: skip


LARGEST = 20_000_000  # weights of a tiny model


def family_names() -> list[str]:
    """The families of the installed mlx_lm: the names of its model files."""
    return sorted({module.name for module in iter_modules(mlx_lm.models.__path__)} - _NOT_FAMILIES)


def config_of(family: str) -> dict[str, Any]:
    """A small config of a family. Raises `MintError` for a family that cannot be made, with the reason."""
    if family in NOT_MADE:
        raise MintError(f"{family}: {NOT_MADE[family]}")
    settings = deepcopy(OVERRIDES.get(family, {}))
    config = {"vocab_size": SMALL["vocab_size"], "torch_dtype": "bfloat16", **_arguments(family)}
    if "text_config" in settings:
        settings["text_config"] = deepcopy(SMALL) | settings["text_config"]
    return config | settings


def _arguments(family: str) -> dict[str, Any]:
    """Small values for the arguments of the family's class."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            module = importlib.import_module(f"mlx_lm.models.{family}")
    except (Exception, SystemExit) as error:
        raise MintError(
            f"mlx_lm's {family}.py does not import: {error!r}; needed: the packages that it names"
        ) from error
    arguments = {}
    for field in fields(module.ModelArgs):
        required = field.default is MISSING and field.default_factory is MISSING
        if field.name in SMALL:
            arguments[field.name] = deepcopy(SMALL[field.name])
        elif required:
            arguments[field.name] = _guess(str(field.type))
    return arguments | {"model_type": family}


def _guess(annotation: str) -> Any:
    """A value of a required argument with an unknown name."""
    for kind, value in (("dict", {}), ("list", []), ("bool", False), ("float", 1.0), ("int", 2), ("str", "")):
        if kind in annotation.lower():
            return value
    return None


def modules_of(config: dict[str, Any]) -> Module:
    """The modules of a tiny model, over lazy parameters."""
    model = MLX_LM.module(config)
    parameters: Any = tree_flatten(model.parameters())
    size = sum(array.size for _, array in parameters)
    if size > LARGEST:
        fault = f"{config['model_type']}: {size} weights are no tiny model"
        raise MintError(f"{fault}; needed: settings in family_configs.py")
    return model


def write_family(family: str, folder: Path, *, seed: int = 0, **settings: Any) -> Path:
    """Write a tiny checkpoint of `family`, its config changed by `settings`, to the new `folder`."""
    config = config_of(family) | settings
    mx.random.seed(seed)
    parameters: Any = tree_flatten(modules_of(config).parameters())
    weights = {name: _drawn(array) for name, array in parameters}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "pt"})
    return folder


def _drawn(array: mx.array) -> mx.array:
    """The initial value of a parameter with noise, at the scale of a trained model; integers stay."""
    if not mx.issubdtype(array.dtype, mx.floating):
        return array
    share, scale = (1.0, 0.05) if array.ndim < 2 else (0.5, array.shape[-1] ** -0.5)
    return (share * array + scale * mx.random.normal(array.shape)).astype(mx.bfloat16)


if __name__ == "__main__":
    print(write_family(sys.argv[1], Path(sys.argv[2])))

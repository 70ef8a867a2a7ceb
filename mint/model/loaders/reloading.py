"""Checks that a loader takes the tensors of a written model as they are.

Loading runs `sanitize` on the tensors of a checkpoint, and again on those that its result was written as. A class of
mlx_vlm can change them the second time. Gemma 3's takes the weight of its head from its embedding, always: both need
one format then.
"""

from pathlib import Path
from typing import Any

import mlx.core as mx

from mint.core.errors import MintError
from mint.model.loaders.loader import Arrays, TreeLoader


def taken_weights(folder: Path, loader: TreeLoader, config: dict[str, Any], arrays: Arrays) -> dict[str, str]:
    """The parameters whose tensors `loader` takes from other parameters of a written model, by name.

    Nothing is computed. Raises `MintError` for a class that gives a written tensor another name or shape.
    """
    with mx.stream(mx.cpu):
        written = {name: mx.zeros(array.shape, array.dtype) for name, array in arrays.items()}
        loaded = loader.sanitized(loader.module(config), dict(written))
    names = {id(array): name for name, array in written.items()}
    for name in sorted(written.keys() | loaded.keys()):
        if name not in loaded or name not in written or loaded[name].shape != written[name].shape:
            fault = f"{loader.name}'s {config['model_type']} model changes {name} when it loads the written model"
            raise MintError(f"{folder}: {fault}; --text-only quantizes the text model alone")
    return {name: other for name, array in loaded.items() if (other := names.get(id(array), name)) != name}

"""GGUF models on a node: the head's conversion, an equal one in this node's cache, or one that is made here.

Equal files give equal conversions, so a node needs the GGUF files alone.
"""

from collections.abc import Iterator, Sequence
from glob import escape
from pathlib import Path

from mint.core.cache import cache_folder
from mint.core.errors import MintError
from mint.model.checkpoint.shards import PATTERN
from mint.model.gguf.files import CONVERSIONS, SUFFIX, conversion_of, gguf_files, gguf_name


def find_conversion(model: Path, roots: Sequence[Path]) -> Path | None:
    """This node's folder of the model that the head has in the conversion `model`; made from files below the roots.

    Raises `MintError` for files of its name that would become another model.
    """
    key, name = model.parent.name, model.name
    for folder in (cache_folder() / CONVERSIONS / key / name, model):
        if any(folder.glob(PATTERN)):
            return folder
    models = list(_models(name, roots))
    for files in models:
        if conversion_of(files).parent.name == key:
            from mint.model.gguf.convert import converted  # imports tokenizers

            return converted(files)
    if models:
        raise MintError(
            f"{models[0][0]} is not the GGUF file that the head has under this name, or another version of mint or "
            "gguf reads it; needed: the same file and versions on every node"
        )
    return None


def _models(name: str, roots: Sequence[Path]) -> Iterator[list[Path]]:
    """The files of every GGUF model of this name below the roots, in folders, or in the snapshots of a hub's cache."""
    for root in roots:
        for pattern in ("", "*/", "models--*/snapshots/*/"):
            for end in (SUFFIX, f"-00001-of-*{SUFFIX}"):
                for file in sorted(root.glob(f"{pattern}{escape(name)}{end}")):
                    if gguf_name(file) == name:
                        yield gguf_files(file)

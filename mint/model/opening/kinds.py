"""Folders and files that are no model in safetensors format: their kind by their names, and the command that helps.

A row of `_KINDS` has the patterns of names that tell a kind, its name, and the remedy, in which {model} is the folder
or the id of the hub.
"""

import fnmatch
import json
from collections.abc import Iterable
from pathlib import Path

from mint.core.cache import recall
from mint.core.errors import MintError
from mint.model.checkpoint.shards import PATTERN, shard_names
from mint.model.opening.path_kind import no_such_folder, refuse_kind

_ORIGINAL = "needed: the original model in safetensors format"
_PEFT = (
    "python -c \"from peft import AutoPeftModelForCausalLM as M; M.from_pretrained('{model}').merge_and_unload()"
    ".save_pretrained('merged')\""
)
_SAFETENSORS = (
    "python -c \"from transformers import AutoModelForCausalLM as M; M.from_pretrained('{model}')"
    ".save_pretrained('converted')\""
)
_KINDS = (
    (("adapters.safetensors",), "a LoRA adapter of mlx_lm{base}, not a model",
     "merge it first: mlx_lm.fuse --model BASE --adapter-path {model} --save-path merged"),
    (("adapter_config.json", "adapter_model.*"), "a LoRA adapter{base}, not a model", f"merge it first: {_PEFT}"),
    (("*.gguf",), "a GGUF model, quantized for llama.cpp",
     f"{_ORIGINAL}, which the model's card names, or the path of one file of it"),
    (("model_index.json",), "a pipeline of diffusers", "needed: a language model"),
    (("*.onnx", "*.onnx_data"), "an ONNX model", _ORIGINAL),
    (("openvino_*",), "an OpenVINO model", _ORIGINAL),
    (("*.mlmodel", "*.mlpackage", "*.mlmodelc"), "a Core ML model", _ORIGINAL),
    (("*.nemo",), "a NeMo archive", _ORIGINAL),
    (("*.bin", "*.pt", "*.pth", "*.ckpt"), "a model in pickle files, which can run code and are never opened",
     f"convert it where you trust it: {_SAFETENSORS}"),
    (("*.h5", "*.msgpack", "*.tflite"), "a TensorFlow or Flax model", _ORIGINAL),
    (("consolidated*.safetensors",), "a model in Mistral's own layout",
     "needed: the files model*.safetensors and config.json of the same model"),
)  # fmt: skip


def kind_of(model: str | Path, names: Iterable[str], base: str = "") -> str:
    """A sentence about the kind of a model with these files and its remedy; empty for an unknown kind."""
    names = list(names)
    for patterns, kind, remedy in _KINDS:
        if any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns):
            return f"it is {kind}; {remedy}".format(model=model, base=f" of {base}" if base else "")
    return ""


def refuse_other_kinds(path: Path) -> None:
    """Raise `MintError` for a file, and for a folder without a model whose files tell its kind."""
    if path.is_file():
        kind = kind_of(path, [path.name])
        if not kind:
            refuse_kind(path, "the folder of a Hugging Face model")
        raise MintError(f"{path}: {kind or 'it is a file; needed: the folder of a Hugging Face model'}")
    if not path.is_dir() or ((path / "config.json").exists() and shard_names(path)):
        return
    names = sorted(file.name for file in path.iterdir())
    if kind := kind_of(path, names, _base(path)):
        raise MintError(f"{path}: no {PATTERN} found (found {', '.join(names[:8])}): {kind}")


def require_model(path: Path) -> None:
    """Raise `MintError` unless there is a folder that may be a model."""
    refuse_other_kinds(path)
    if not path.is_dir():
        is_name = len(path.parts) == 1  # without a folder in front
        hub = f", or an id of the hub, such as OWNER/{path.name}" if is_name else ""
        raise no_such_folder(path, f"the folder of a Hugging Face model{hub}")


def _base(folder: Path) -> str:
    """The model that an adapter is of, if its config says so."""
    config = recall(folder / "adapter_config.json", json.loads)
    return str(config.get("base_model_name_or_path") or config.get("model") or "") if isinstance(config, dict) else ""

"""Errors about a path of the wrong kind: they name its kind, what is needed, and the commands that take it.

A command takes a model, an analysis, a plan or a folder that mint wrote, and people mix them up.
"""

import json
import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from mint.core.cache import recall
from mint.core.errors import MintError
from mint.core.files import require_loadable, require_outside, require_writable
from mint.model.checkpoint.manifest import MANIFEST_NAME
from mint.model.hub_cache import parse_id

_JOURNAL = b"MINT "  # files of frames begin so, then their kind and the end of the line
_PLAN = b'"kind": "mint plan"'
_HEAD_BYTES = 64

# by kind: the commands that take such a path; {path} is quoted, {name} is its last part
_COMMANDS = {
    "an analysis": "mint allocate {path} --budget SIZE makes a plan of it",
    "a plan": "mint assemble {path} --model MODEL --output OUT writes its model",
    "a model": "mint quantize {path} --budget SIZE quantizes it, mint analyze {path} makes its analysis {name}.mint",
    "a quantized model": "mint evaluate {path} --reference ORIGINAL compares it with its original",
    "a model that mint wrote": "mint show {path} describes it",
}


def kind_of_path(path: Path) -> str:
    """The kind of an existing file or folder in words, such as `a plan`; `a file` or `a folder` for foreign ones."""
    if path.is_dir():
        if (path / MANIFEST_NAME).is_file():
            return "a model that mint wrote"
        if (path / "config.json").is_file():
            return "a quantized model" if _is_quantized(path / "config.json") else "a model"
        return "a folder" if any(path.iterdir()) else "an empty folder"
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(_JOURNAL):
        kind = head.removeprefix(_JOURNAL).partition(b"\n")[0].decode(errors="replace")
        return {"analysis": "an analysis", "probe": "a file of probes"}.get(kind, f"a file of the kind {kind}")
    if _PLAN in head:
        return "a plan"
    is_of_model = (path.parent / "config.json").is_file()
    return f"a file of the model in {path.absolute().parent}" if is_of_model else "a file"


def _is_quantized(config: Path) -> bool:
    """True for the config of a model that MLX has quantized: quantizing it again is refused."""
    record = recall(config, json.loads)
    return isinstance(record, dict) and bool(record.get("quantization"))


def refuse_kind(path: Path, needed: str, *accepted: str) -> None:
    """Raise `MintError` for an existing path of a kind that is none of `accepted`; foreign files pass."""
    kind = kind_of_path(path) if path.exists() else ""
    if kind in ("", "a file", *accepted):
        return
    commands = _COMMANDS.get(kind, "").format(path=shlex.quote(str(path)), name=path.absolute().name)
    raise MintError(f"{path}: it is {kind}; needed: {needed}" + (f". {commands}" if commands else ""))


def no_such_folder(path: Path, needed: str) -> MintError:
    """The error for a path that does not exist; it names the folders beside it that are named much alike.

    A path in a folder is not called a model of the hub, which it might be: its address there is.
    """
    parent = path.parent.expanduser()
    folders = [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
    close = get_close_matches(path.name, folders, n=3)
    beside = f". In {parent} there is: {', '.join(close)}" if close else ""
    id = parse_id(str(path)) if len(path.parts) > 1 else None
    on_hub = f". A model of the hub: https://huggingface.co/{id.repository}" if id else ""
    return MintError(f"{path}: no such folder; needed: {needed}{beside}{on_hub}")


def check_outputs(outputs: Sequence[Path], files: Sequence[Path], model: Path) -> None:
    """Raise `MintError` for `outputs` and analysis `files` that cannot be written, or would lie inside of `model`."""
    for path in (*outputs, *files):
        require_writable(path)
    for path in files:
        refuse_kind(path, "the name of a file for an analysis", "an analysis")
    for path in outputs:
        require_loadable(path)
        require_outside(path, model)
